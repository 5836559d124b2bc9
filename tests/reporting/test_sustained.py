"""Latencies under a load that lasts beside those of bursts."""

import pandas as pd
import pytest
from claim_rows import row

from tritonmoe_bench.experiments.reporting import sustained


def study(name, times, launch="graph", **other):
    """Rows of systems by (system, tokens) in us."""
    clock = {"settled_clock_mhz": 1380.0} if name == "energy" else {}
    return pd.DataFrame([
        row(system, us, study=name, tokens=tokens, launch=launch, run_id=name, quant="none", routing="drawn",
            **{"revision": 2} | clock | other)
        for (system, tokens), us in times.items()
    ])  # fmt: skip


FRAMES = {
    "headline": study("headline", {("fast", 32): 100.0, ("vllm", 32): 120.0, ("fast", 512): 800.0,
                                   ("vllm", 512): 1000.0, ("fast", 8): 90.0}),
    "energy": study("energy", {("fast", 32): 101.0, ("vllm", 32): 121.2, ("fast", 512): 880.0, ("vllm", 512): 836.0}),
}  # fmt: skip


def test_points_in_both_studies_are_shown_with_what_load_adds():
    made = sustained.table(FRAMES)
    assert [line[1:7] for line in made.rows] == [
        ["32", "0", "100", "101", "+1.0 %", "1380"], ["512", "0", "800", "880", "+10.0 %", "1380"],
    ]  # fmt: skip
    assert [line[7:] for line in made.rows] == [["1.20", "1.20", "vllm"], ["1.25", "0.95", "vllm"]]


def test_the_point_that_load_slows_down_most_is_named():
    numbers = sustained.numbers(FRAMES)
    assert (numbers["most"]["tokens"], numbers["most"]["more"]) == (512, pytest.approx(1.1))
    assert (numbers["standing"].ahead, numbers["standing"].behind, numbers["standing"].points) == (1, 1, 2)
    assert not numbers["older"]
    assert sustained.numbers(FRAMES | {"energy": FRAMES["energy"].assign(revision=1)})["older"]


@pytest.mark.parametrize("without", ["headline", "energy"])
def test_without_one_of_the_studies_nothing_is_said(without):
    frames = {name: frame for name, frame in FRAMES.items() if name != without}
    assert (sustained.numbers(frames), sustained.table(frames)) == ({}, None)


def test_without_a_common_point_nothing_is_said():
    elsewhere = {**FRAMES, "energy": study("energy", {("fast", 128): 101.0})}
    assert (sustained.numbers(elsewhere), sustained.table(elsewhere)) == ({}, None)
