"""The claims on the speed of the paper's pipeline: each is decided both ways by a few made-up rows."""

import pytest
from claim_rows import MODELS, PATHS, against_megablocks, finding, row, texts, verdict

from tritonmoe_bench.experiments.analysis.own_code import speedups
from tritonmoe_bench.experiments.claims import Verdict


@pytest.mark.parametrize(
    ("ratio_of", "expected"),
    [
        (lambda *_: 1.0, "holds"),
        (lambda *_: 1.32, "holds"),  # inside the band within the noise
        (lambda *_: 0.5, "does not hold"),
        (lambda *_: 3.0, "does not hold"),  # at no point, though better
        (lambda path, *_: 0.5 if path == "megablocks_sparse" else 1.0, "holds in part"),
    ],
)
def test_throughput_vs_megablocks(ratio_of, expected):
    assert verdict("throughput-vs-megablocks", against_megablocks(ratio_of)) == expected


def test_throughput_needs_all_three_models_and_counts_no_larger_batch():
    told = texts("throughput-vs-megablocks", against_megablocks(lambda *_: 1.0, models=MODELS[:2]))
    assert told.verdict is Verdict.IN_PART
    assert "no point for qwen2_paper" in told.sentence
    larger = against_megablocks(lambda *_: 0.5, tokens=(2048,))
    assert verdict("throughput-vs-megablocks", against_megablocks(lambda *_: 1.0) + larger) == "holds"


def test_a_verdict_says_at_how_many_points_the_claim_holds_as_published():
    told = texts("throughput-vs-megablocks", against_megablocks(lambda path, *_: 3.0 if "cutlass" in path else 1.0))
    assert (told.verdict, told.points) == (Verdict.IN_PART, "12 of 18")
    assert told.miss == "better than claimed at 6"
    assert "schedule built on the GPU" not in told.sentence  # nothing ran in a graph


def test_the_schedule_on_the_gpu_is_compared_too():
    rows = against_megablocks(lambda *_: 1.0)
    rows += [row("paper_fused_graph", 50.0, model=model, tokens=32, launch="graph") for model in MODELS]
    sentence = texts("throughput-vs-megablocks", rows).sentence
    assert "With the schedule built on the GPU (paper_fused_graph)" in sentence
    assert sentence.endswith("each system in its best launch mode, the ratio is 2.00.")


def test_the_numbers_of_a_finding_are_those_of_the_rows():
    ratios = dict(zip(PATHS, (0.5, 1.0, 2.0)))
    told = texts("throughput-vs-megablocks", against_megablocks(lambda path, *_: ratios[path]))
    assert "Of 18 throughput ratios" in told.sentence
    assert "6 lie inside 0.89–1.31 within their noise, 6 above and 6 below" in told.sentence
    assert "megablocks_sparse: 0.50" in told.measured
    assert told.miss == "better than claimed at 6, worse at 6"
    assert told.rows == "throughput.csv: 24 of 24 rows"


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({32: 1.31, 128: 1.24, 512: 0.89}, "holds"),
        ({32: 1.30, 128: 1.5, 512: 0.9}, "holds"),
        ({32: 1.31, 128: 1.24, 512: 0.5}, "holds in part"),
        ({32: 1.31, 128: 1.24}, "holds in part"),
        ({32: 1.0, 128: 1.0, 512: 0.5}, "does not hold"),
    ],
)
def test_mixtral_32_tokens(ratios, expected):
    rows = against_megablocks(lambda path, model, tokens: ratios[tokens], ["mixtral"], list(ratios))
    rows += against_megablocks(lambda *_: 0.1, ["deepseek_v3"])
    assert verdict("mixtral-32-tokens", rows) == expected


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((1.2, 1.7), "holds"),
        ((1.2, 2.5), "holds in part"),
        ((1.2, 1.01), "holds in part"),
        ((1.09, 1.05), "does not hold"),  # inside the band only within the noise
        ((1.01, 0.8), "does not hold"),
    ],
)
def test_fused_over_unfused(speedups, expected):
    rows = []
    for tokens, speedup in enumerate(speedups, start=1):
        rows += [row("paper_fused", 100.0, tokens=tokens), row("paper_unfused", 100.0 * speedup, tokens=tokens)]
    assert verdict("fused-over-unfused", rows) == expected


def test_without_rows_the_papers_own_code_stands_as_it_was_measured_earlier():
    own = speedups("nvidia-h200")
    assert len(own) == 15
    rows = [row("paper_fused", 100.0), row("paper_unfused", 100.0)]
    told = finding("fused-over-unfused", rows, own_code=own).own_code
    assert (told.better, told.worse + told.points[0], told.points[1]) == (0, 15, 15)
    assert told.points[0] == own["over_unfused"].between(1.1, 1.8).sum() > 0
    assert texts("fused-over-unfused", rows, own_code=own).verdict is Verdict.DOES_NOT
    assert "**holds in part** (10 of 15, measured earlier;" in texts("fused-over-unfused", rows, own_code=own).own_code
    mixtral = finding("mixtral-32-tokens", against_megablocks(lambda *_: 1.0), own_code=own).own_code
    assert len(mixtral.ratios) == 3
    elsewhere = speedups("amd-mi300x")
    assert finding("fused-over-unfused", rows, own_code=elsewhere).own_code.verdict is Verdict.UNDECIDED
    assert texts("fused-over-unfused", rows).own_code.endswith("**undecided** (not measured)")
    assert texts("fused-over-unfused", rows).own_ratios == ""


@pytest.mark.parametrize("study", ["paper_code", "throughput"])
def test_rows_of_the_papers_own_code_decide_for_it_and_for_nothing_else(study):
    rows = [row("paper_fused", 100.0), row("paper_unfused", 100.0), row("paper_fused", 60.0, study=study, tokens=1)]
    rows += [row("tritonmoe", 100.0, study=study, tokens=count) for count in (1, 2)]
    rows += [row("tritonmoe_unfused", times, study=study, tokens=count) for count, times in ((1, 150.0), (2, 105.0))]
    told = finding("fused-over-unfused", rows, own_code=speedups("nvidia-h200"))
    assert told.verdict is Verdict.DOES_NOT
    own = told.own_code
    assert (own.verdict, own.points, own.better, own.worse) == (Verdict.IN_PART, (1, 2), 0, 1)
    assert list(own.ratios) == [1.5, 1.05]
    assert texts("fused-over-unfused", rows).own_code.endswith("**holds in part** (1 of 2; worse than claimed at 1)")


def test_a_failed_row_of_the_papers_own_code_decides_nothing():
    rows = against_megablocks(lambda *_: 1.0)
    rows += [row("tritonmoe", status="unavailable", reason="make checkouts")]
    assert finding("throughput-vs-megablocks", rows).own_code.verdict is Verdict.UNDECIDED


def test_what_separates_two_processes_widens_the_noise():
    rows = against_megablocks(lambda *_: 1.40)
    assert verdict("throughput-vs-megablocks", rows) == "does not hold"
    assert verdict("throughput-vs-megablocks", [values | {"apart": 1.05} for values in rows]) == "holds"


def test_both_codes_are_judged_at_the_same_points():
    rows = [row("paper_fused", 100.0), row("paper_unfused", 150.0)]
    for tokens, skew in ((32, 0.0), (32, 1.2), (512, 0.0)):
        at = {"study": "paper_code", "tokens": tokens, "skew": skew}
        rows += [row("tritonmoe", 100.0, **at), row("tritonmoe_unfused", 120.0, **at)]
    own = finding("fused-over-unfused", rows).own_code
    assert own.points == (1, 1)  # the rewrite has no other one
    told = texts("fused-over-unfused", rows)
    assert told.files == ("throughput.csv", "paper_code.csv")
    assert told.own_rows == "paper_code.csv: 2 of 6 rows"
