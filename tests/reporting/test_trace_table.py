"""The report's table of what a forward spends beside the reading of its weights."""

from pathlib import Path

import pandas as pd
import pytest

from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.analysis.trace import parts
from tritonmoe_bench.experiments.measure.trace import Trace
from tritonmoe_bench.experiments.reporting.section import Material, render
from tritonmoe_bench.experiments.reporting.sections import trace
from tritonmoe_bench.experiments.reporting.trace import trace_table
from tritonmoe_bench.experiments.table.card_speed import CARD_US

SHARED = {
    "run_id": "r", "case_hash": "c", "model": "mixtral", "num_experts": 8, "top_k": 2, "hidden_dim": 4096,
    "ffn_dim": 14336, "seed": 0, "dtype": "bf16", "gating": "softmax", "quant": "none", "routing": "drawn",
    "layer": "plain", "tokens": 8, "skew": 0.0, "launch": "graph", "status": "ok",
}  # fmt: skip
FAST = [("_split_logits_kernel", 1.5), ("_top_k_kernel", 1.0), ("_joined_kernel", 110.0), ("_combine_kernel", 2.0)]
VLLM = [
    ("topkGating", 4.0), ("fused_moe_kernel", 80.0), ("act_and_mul_kernel", 3.0), ("fused_moe_kernel", 40.0),
    ("moe_sum_vec_kernel", 2.5),
]  # fmt: skip


def rows(**systems):
    return pd.DataFrame([
        SHARED | {"implementation": system, "place": place, "kernel_name": name, "p50_us": us,
                  "forward_us": sum(time for _, time in kernels)}
        for system, kernels in systems.items() for place, (name, us) in reversed(list(enumerate(kernels, 1)))
    ])  # fmt: skip


EVERY = rows(stream=[("_stream_kernel", 100.0)], fast=FAST, vllm=VLLM)


def test_experts_go_from_the_first_kernel_that_reads_weights_to_the_last():
    found = parts(EVERY).set_index("implementation")
    assert found.loc["fast", ["routing", "experts", "outputs", "kernels"]].tolist() == [2.5, 10.0, 2.0, 4]
    assert found.loc["vllm", ["routing", "experts", "outputs", "reading"]].tolist() == [4.0, 23.0, 2.5, 100.0]


def test_the_reading_is_that_of_the_systems_own_card():
    """Of two H200s one reads 1 % faster: 1 us of the 100 is the card's."""
    other = EVERY["implementation"] == "vllm"
    found = parts(EVERY.assign(**{CARD_US: other.map({False: 200.0, True: 202.0})})).set_index("implementation")
    assert found.loc["fast", ["experts", "reading"]].tolist() == [10.0, 100.0]
    assert found.loc["vllm", ["experts", "reading"]].tolist() == [22.0, 100.0]


def test_a_line_for_each_point_and_a_column_for_each_system():
    table = trace_table(pd.concat([EVERY, rows(stream=[("_stream_kernel", 9.0)], fast=FAST).assign(
        case_hash="d", tokens=1)]))  # fmt: skip
    assert table.header == ["model", "tokens", "reading", "fast", "vLLM"]
    assert table.rows == [
        ["Mixtral-8x7B", "1", "9.0", "2.5 + 101.0 + 2.0 = 105.5 (4)", "-"],
        ["Mixtral-8x7B", "8", "100.0", "2.5 + 10.0 + 2.0 = 14.5 (4)", "4.0 + 23.0 + 2.5 = 29.5 (5)"],
    ]


@pytest.mark.parametrize(("off", "mark"), [(1.0, ""), (0.96, ""), (1.04, ""), (0.94, "‡"), (1.07, "‡")])
def test_times_that_are_not_the_forward_without_tracing_are_marked(off, mark):
    fast = EVERY["implementation"] == "fast"
    frame = EVERY.assign(forward_us=EVERY["forward_us"].where(~fast, EVERY["forward_us"] / off))
    [line] = trace_table(frame).rows
    assert line[-2:] == [f"{mark}2.5 + 10.0 + 2.0 = 14.5 (4)", "4.0 + 23.0 + 2.5 = 29.5 (5)"]


def test_the_section_says_what_the_mark_means():
    material = Material(Path(), Path(), "gpu", [], studies={"trace": Study("trace", Path(), EVERY, {})})
    text = render(trace, trace.content(material), material, Path())
    assert "‡ marks times which, with the reading, are more than 5 % off the latency of the same forward" in text


@pytest.mark.parametrize(
    ("other", "column", "head"),
    [({"skew": 1.2}, "1.2", "skew"), ({"num_experts": 64}, "64", "experts"), ({"ffn_dim": 7168}, "7168", "ffn")],
    ids=lambda value: str(value),
)
def test_another_case_of_the_same_model_and_tokens_has_a_line_of_its_own(other, column, head):
    second = rows(stream=[("_stream_kernel", 90.0)], fast=FAST).assign(case_hash="d", **other)
    table = trace_table(pd.concat([second, EVERY]))
    assert table.header == ["model", "tokens", head, "reading", "fast", "vLLM"]
    assert sorted(line[2:5] for line in table.rows) == sorted([
        [f"{SHARED[next(iter(other))]:g}", "100.0", "2.5 + 10.0 + 2.0 = 14.5 (4)"],
        [column, "90.0", "2.5 + 20.0 + 2.0 = 24.5 (4)"],
    ])  # fmt: skip


@pytest.mark.parametrize(
    "frame",
    [EVERY.head(0), EVERY[EVERY["implementation"] != "stream"], rows(stream=[("_stream_kernel", 1.0)]),
     rows(stream=[("_stream_kernel", 1.0)], other=[("gemm", 2.0)])],
)  # fmt: skip
def test_without_a_system_beside_the_reading_there_is_none(frame):
    assert trace_table(frame) is None


def test_a_sweep_ends_with_the_kernels_of_each_forward_in_their_order():
    table = Trace().closing_table(EVERY)
    assert (
        "mixtral 8 2 bf16 0.0 8 fast graph: _split_logits_kernel 1.5, _top_k_kernel 1.0, _joined_kernel 110.0" in table
    )
    assert Trace().closing_table(EVERY.assign(p50_us=float("nan"))) == ""
