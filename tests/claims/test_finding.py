"""Claims and rules match; what cannot be decided says why; correctness and portability."""

import pandas as pd
import pytest
import yaml
from claim_rows import PATHS, frame, grid, row, texts, verdict

from tritonmoe_bench.experiments.analysis.compare import NoEvidence, compare, current_run
from tritonmoe_bench.experiments.claims import CLAIMS, DISPUTED, Evidence, Verdict, decide, load_claims
from tritonmoe_bench.experiments.reporting.texts import claim_texts
from tritonmoe_bench.plots.parts import registry


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ({"nvidia-a100": grid(162), "amd-mi300x": grid(162)}, "holds"),
        ({"interpreter": grid(162), "nvidia-h200": grid(162)}, "holds in part"),
        ({"interpreter": grid(162), "nvidia-h200": grid(161, 1)}, "does not hold"),
        ({"interpreter": grid(100)}, "undecided"),
        ({"interpreter": {"ours": {"passed": 1, "failed": 0}}}, "undecided"),
    ],
)
def test_correctness(tests, expected):
    assert verdict("correctness", tests=tests) == expected


@pytest.mark.parametrize(
    ("statuses", "tests", "expected"),
    [
        (("ok", "ok"), {"nvidia-a100": grid(162), "amd-mi300x": grid(162)}, "holds"),
        (("ok", "ok"), {"interpreter": grid(162)}, "holds in part"),
        (("ok", "error"), {}, "does not hold"),
    ],
)
def test_portability(statuses, tests, expected):
    table = pd.DataFrame({"kernel": "k", "target": ["sm_80", "gfx942"], "status": statuses})
    assert verdict("portability", portability=table, tests=tests) == expected


def test_without_results_every_claim_is_undecided_and_says_what_would_decide_it():
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    every = [claim_texts(finding) for finding in decide(Evidence("gpu"))]
    assert [told.id for told in every] == [claim["id"] for claim in claims]
    for told, claim in zip(every, claims):
        assert told.verdict is Verdict.UNDECIDED, told
        assert claim["decided_by"] in told.sentence


def test_a_claim_on_something_else_is_not_applicable_to_the_papers_own_code():
    own = {finding.claim.id: finding.own_code.verdict for finding in decide(Evidence("gpu"))}
    elsewhere = {claim for claim, told in own.items() if told is Verdict.NOT_APPLICABLE}
    assert elsewhere == {
        "dynamic-assignment", "fused-routing-neutral", "routing-distribution-matters", "warp-decode-throughput",
        "warp-decode-accuracy",
    }  # fmt: skip
    assert {told for claim, told in own.items() if claim not in elsewhere} == {Verdict.UNDECIDED}
    assert all(finding.own_code is None for finding in decide(Evidence("gpu"), DISPUTED))


def test_what_was_tried_and_cannot_run_here_is_not_testable():
    rows = [row("paper_fused", 1.0)]
    rows += [row(path, status="unavailable", reason="make megablocks") for path in PATHS]
    told = texts("throughput-vs-megablocks", rows)
    assert told.verdict is Verdict.NOT_TESTABLE
    assert "unavailable (make megablocks)" in told.sentence


def test_runs_are_not_mixed():
    old = row("megablocks_sparse", 500.0, run_id="old")
    rows = frame([old | {"timestamp_utc": "2025-01-01T00:00:00Z"}, row("paper_fused", 100.0)])
    with pytest.raises(NoEvidence):
        compare(rows, "paper_fused", PATHS, "eager")
    assert set(current_run(rows)["implementation"]) == {"paper_fused"}


def test_launch_modes_are_not_mixed_and_the_best_one_is_found():
    rows = frame([
        row("paper_fused", 100.0), row("paper_fused", 50.0, launch="graph"), row("megablocks_sparse", 200.0),
    ])  # fmt: skip
    assert compare(rows, "paper_fused", PATHS, "eager")["ratio"].tolist() == [2.0]
    assert compare(rows, "paper_fused", PATHS, "best")["ratio"].tolist() == [4.0]


@pytest.mark.parametrize("change", ["lacks a rule", "lacks a claim", "twice"])
def test_claims_and_rules_must_match(tmp_path, change):
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    if change == "lacks a rule":
        claims.append(claims[0] | {"id": "brand-new"})
    elif change == "lacks a claim":
        del claims[0]
    else:
        claims.append(claims[0])
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(claims), encoding="utf-8")
    with pytest.raises(ValueError, match=r"brand-new|throughput-vs-megablocks"):
        decide(Evidence("gpu"), path)


def test_every_figure_that_a_rule_names_exists():
    named = {claim.figure for claim in load_claims()} - {""}
    assert named
    assert named <= set(registry.figures())
