"""The claims on skew and on dynamic assignment, each decided both ways by a few made-up rows."""

import pytest
from claim_rows import assigned, over_skew, row, texts, verdict

from tritonmoe_bench.experiments.claims import Verdict, load_claims


@pytest.mark.parametrize(
    ("ratio_of", "expected"),
    [
        (lambda experts, skew: 0.8 if experts >= 64 and skew > 1 else 1.2, "holds"),
        (lambda experts, skew: 0.8 if experts > 64 and skew > 1 else 1.2, "holds in part"),
        (lambda experts, skew: 1.2 if experts >= 64 and skew > 1 else 0.8, "does not hold"),
        (lambda *_: 0.99, "does not hold"),  # inside the noise
    ],
)
def test_skew_regime(ratio_of, expected):
    assert verdict("skew-regime", over_skew(ratio_of, experts=(8, 64, 128))) == expected


@pytest.mark.parametrize(
    ("fixed", "megablocks", "expected"),
    [
        (lambda *_: 1.2, lambda *_: 1.1, "holds"),
        (lambda *_: 1.2, lambda *_: 0.99, "holds"),  # behind Megablocks inside the noise only
        (lambda experts, skew: 1.2 if experts >= 64 and skew > 1 else 0.5, lambda *_: 1.1, "holds"),
        (lambda experts, skew: 1.2 if experts > 64 else 0.8, lambda *_: 1.1, "holds in part"),
        (lambda *_: 1.2, lambda experts, _: 1.1 if experts > 64 else 0.8, "holds in part"),
        (lambda *_: 1.2, lambda *_: 0.8, "does not hold"),
        (lambda *_: 1.01, lambda *_: 1.1, "does not hold"),  # faster than the fixed tiles inside the noise only
        (lambda experts, skew: 0.8 if experts >= 64 and skew > 1 else 1.2, lambda *_: 1.1, "does not hold"),
    ],
)
def test_dynamic_assignment(fixed, megablocks, expected):
    assert verdict("dynamic-assignment", assigned(fixed, megablocks)) == expected


def test_dynamic_assignment_says_what_there_is_to_repair():
    told = texts("dynamic-assignment", assigned(lambda experts, _: experts / 80, lambda *_: 1.1))
    assert "faster than 64 rows for all blocks at 1 of 2 points and slower at 1;" in told.sentence
    assert "they run at 0.80–1.60 times the speed" in told.sentence
    assert "The best single height is 64 rows at 2; dynamic" in told.sentence
    assert "not slower than the fastest Megablocks path at 2 of 2 points" in told.sentence
    assert "the paper's tiles are slower than it at 2 of 2." in told.sentence
    assert told.rows == "heights.csv: 4 of 24 rows; skew.csv: 4 of 24 rows"


def test_dynamic_assignment_is_not_applicable_where_there_is_nothing_to_repair():
    told = texts("dynamic-assignment", assigned(lambda *_: 1.2, lambda *_: 1.1, papers=105.0))
    assert (told.verdict, told.points) == (Verdict.NOT_APPLICABLE, "")
    assert told.sentence.endswith("the paper's tiles are slower than it at 0 of 2, so there is nothing to repair.")


def test_dynamic_assignment_waits_for_its_regime_and_for_both_studies():
    rows = assigned(lambda *_: 1.2, lambda *_: 1.1)
    for kept in (
        [r for r in rows if r["num_experts"] == 8],
        [r for r in rows if r["implementation"] != "fast"],
        [r for r in rows if r["implementation"] != "fastvariant_fixed64"],
        [r for r in rows if r["study"] == "heights"],
        [r for r in rows if r["study"] == "skew"],
    ):
        assert verdict("dynamic-assignment", kept) == "undecided"


def test_both_claims_mean_the_same_regime():
    figures = {claim.id: claim.figures for claim in load_claims()}
    assert figures["skew-regime"]["experts_from"] == figures["dynamic-assignment"]["experts_from"]


@pytest.mark.parametrize(
    ("ratio_of", "expected"),
    [
        (lambda experts, skew: 1 + skew, "holds"),
        (lambda experts, skew: 1 + skew if experts == 8 else 1.0, "holds in part"),
        (lambda experts, skew: 3 - skew, "does not hold"),
    ],
)
def test_imbalance_gain(ratio_of, expected):
    assert verdict("imbalance-gain", over_skew(ratio_of)) == expected


@pytest.mark.parametrize(
    ("latencies", "active", "expected"),
    [
        ((100, 150), (8, 8), "holds"),
        ((100, 150), (8, 4), "holds in part"),  # no point is controlled
        ((100, 101), (8, 8), "does not hold"),
        ((100, 101), (8, 4), "does not hold"),
    ],
)
def test_routing_distribution_matters(latencies, active, expected):
    rows = [
        row("paper_fused", latency, study="skew", skew=skew, active_experts=count)
        for latency, skew, count in zip(latencies, (0.0, 2.0), active)
    ]
    rows += [row("stream", 1.0 + skew, study="skew", skew=skew) for skew in (0.0, 2.0)]
    assert verdict("routing-distribution-matters", rows) == expected
