"""The claims on memory traffic, launches and workspace, each decided both ways by a few made-up rows."""

import pytest
from claim_rows import counted, finding, row, texts, traffic, verdict

from tritonmoe_bench.experiments.claims import Verdict


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 7, 24), "holds"), ((5, 7, 100), "holds"), ((6, 7, 24), "holds in part"), ((6, 8, 23), "does not hold")],
)
def test_launches(counts, expected):
    names = ("paper_fused", "paper_unfused", "torch_loop")
    rows = [row(name, 1.0, kernel_launches=count) for name, count in zip(names, counts)]
    assert verdict("launches", rows) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"), [((10, 20, 30), "holds"), ((10, 20, 5), "holds in part"), ((10, 10, 5), "does not hold")]
)
def test_workspace(sizes, expected):
    names = ("paper_fused", "megablocks_sparse", "megablocks_grouped_cublas")
    rows = [row(name, 1.0, workspace_bytes=size) for name, size in zip(names, sizes)]
    assert verdict("workspace", rows) == expected


@pytest.mark.parametrize(
    ("fused", "unfused", "expected"),
    [
        ((60, 4), (90, 10), "holds"),
        ((90, 6), (90, 10), "does not hold"),  # 40 % of the activations, 4 % of all
        ((90, 9), (90, 10), "does not hold"),
    ],
)
def test_memory_traffic(fused, unfused, expected):
    rows = traffic("paper_fused", *fused) + traffic("paper_unfused", *unfused)
    told = texts("memory-traffic", rows)
    assert told.verdict.value == expected


def test_the_papers_own_code_is_told_on_which_side_it_misses():
    rows = traffic("tritonmoe", 90, 9) + traffic("tritonmoe_unfused", 90, 10)
    own = finding("memory-traffic", rows).own_code
    assert (own.points, own.better, own.worse) == ((0, 2), 0, 2)
    told = texts("memory-traffic", rows)
    assert told.own_code.endswith("**does not hold** (0 of 2; worse than claimed at 2)")
    assert (told.own_ratios, told.brief) == ("1 %", "-")


@pytest.mark.parametrize(
    ("fused", "modelled", "expected"),
    [
        (59, (90, 9), "holds"),  # the counters decide, and the model says 1 %
        (95, (60, 4), "does not hold"),  # the model says 36 %
        (95, (90, 9), "does not hold"),
    ],
)
def test_memory_traffic_is_decided_by_the_counters_where_they_were_read(fused, modelled, expected):
    rows = [counted("paper_fused", fused), counted("paper_unfused", 99)]
    rows += traffic("paper_fused", *modelled) + traffic("paper_unfused", 90, 10)
    told = texts("memory-traffic", rows)
    assert told.verdict.value == expected
    assert f"counters on the paper's models: {100 - fused - 1} % of what DRAM moves" in told.measured


def test_memory_traffic_says_where_it_is_reached_and_where_not():
    rows = []
    for tokens, gate in ((32, 6), (512, 7), (4096, 2)):
        rows += traffic("paper_fused", 90, gate, tokens=tokens) + traffic("paper_unfused", 90, 10, tokens=tokens)
    told = texts("memory-traffic", rows)
    assert "at 0 of 3 points counting every access issued (at most 8 %, on mixtral with 4096 tokens);" in told.sentence
    reached = "2 of 3 points counting each address once a stage, without weights (mixtral, 32 to 4096 tokens)."
    assert told.sentence.endswith(reached)


def test_memory_traffic_is_not_decided_by_another_shape():
    rows = traffic("paper_fused", 1, 1, "tiny") + traffic("paper_unfused", 9, 9, "tiny")
    assert finding("memory-traffic", rows).verdict is Verdict.UNDECIDED
