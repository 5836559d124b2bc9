"""Two GPUs side by side, on rows made for it."""

from __future__ import annotations

import pandas as pd
from claim_rows import row

from tritonmoe_bench.experiments.analysis.across import carried


def rows(latencies, study="headline"):
    """Rows of systems at 1, 2, ... tokens, by name their latencies."""
    return pd.DataFrame([
        row(name, latency, study=study, tokens=tokens)
        for name, times in latencies.items()
        for tokens, latency in enumerate(times, 1)
        if latency
    ])  # fmt: skip


ONE = {
    "stream": [1.0, 1.0],
    "fast": [100.0, 100.0],
    "vllm": [150.0, 80.0],
    "sglang": [300.0, 120.0],
    "humming": [5.0, 0],
}


def test_the_same_order_carries_over_and_another_one_does_not():
    slower = {name: [7 * time for time in times] for name, times in ONE.items() if name != "humming"}
    found = carried({"headline": rows(ONE)}, {"headline": rows(slower)})
    assert (found.points, found.fastest, found.pairs, found.order) == (2, 2, 6, 6)
    # A system that one GPU lacks is the fastest nowhere.
    assert list(found.systems["implementation"]) == ["fast", "vllm", "sglang"]
    assert list(found.leads["lead"].round()) == list(found.leads["lead_two"].round()) == [50, -20]

    other = slower | {"vllm": [500.0, 900.0]}
    found = carried({"headline": rows(ONE)}, {"headline": rows(other)})
    assert (found.fastest, found.pairs, found.order) == (0, 6, 3)
    assert list(found.leads["other_two"]) == ["vllm", "sglang"]


def test_what_is_inside_of_the_noise_on_one_gpu_decides_nothing():
    near = ONE | {"vllm": [100.1, 99.9], "humming": [0, 0]}
    found = carried({"headline": rows(ONE)}, {"headline": rows(near)})
    assert (found.fastest, found.pairs, found.order) == (2, 4, 4)
    assert found.leads["tie_two"].all()


def test_nothing_is_compared_without_a_point_that_both_have():
    assert carried({"headline": rows(ONE)}, {"throughput": rows(ONE)}) is None
    assert carried({"headline": rows(ONE)}, {"quant": rows(ONE, "quant")}) is None
