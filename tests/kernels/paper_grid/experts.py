"""What the rows on expert GEMMs, whole forwards and the reference itself assert."""

from __future__ import annotations

import torch
from moe_cases import assert_accurate, make_layer
from paper_steps import fused_gate_up, grouped_gemm, schedule_on_host

from paper_grid.rows import SIGMOID, SOFTMAX, Row, check, routed_experts
from tritonmoe_bench.experiments.workload.reference import moe_forward
from tritonmoe_bench.kernels.paper.permute import launch_permute
from tritonmoe_bench.kernels.paper.silu_mul import launch_silu_mul

SCALE = 32
"""Hidden and ffn sizes of a real model are divided by this for the interpreter."""


def expert_layer(row: Row, gating: str = "softmax", **changes):
    """A layer for the expert GEMMs, scaled down as test_paper_grid.py says."""
    hidden, ffn = (row.hidden // SCALE, row.ffn // SCALE) if row.model else (row.hidden, row.ffn)
    shape = {"tokens": row.tokens, "experts": row.experts, "top_k": row.top_k, "hidden": hidden, "ffn": ffn} | changes
    return make_layer(row.device, **shape, dtype="fp16", gating=gating)


@check
def reference_forward_shape(row):
    layer = expert_layer(row)
    assert layer.reference(torch.float32).shape == (row.tokens, row.hidden)


@check
def reference_forward_no_nan(row):
    assert bool(expert_layer(row).reference(torch.float16).isfinite().all())


@check
def reference_sigmoid_gating(row):
    layer = expert_layer(row, gating="sigmoid_renorm")
    sigmoid, softmax = (
        moe_forward(layer.x, layer.weights.router(), layer.expert, row.top_k, gating) for gating in (SIGMOID, SOFTMAX)
    )
    assert bool(sigmoid.isfinite().all())
    assert not torch.equal(sigmoid, softmax)


def expert_rows(row: Row, counts: list[int] | None = None):
    """(layer, schedule, rows in expert order, rows of each expert); `counts` replaces the routing that is drawn."""
    layer = expert_layer(row)
    if counts is None:
        experts = routed_experts(row)
    else:
        experts = torch.repeat_interleave(torch.arange(row.experts), torch.tensor(counts))
        experts = experts.to(device=row.device, dtype=torch.int32).view(-1, row.top_k)
    schedule = schedule_on_host(experts, row.experts)
    rows, _ = launch_permute(layer.x, schedule.order, row.top_k)
    return layer, schedule, rows, schedule.offsets.diff().tolist()


def by_expert(rows: torch.Tensor, weights: torch.Tensor, counts: list[int]) -> torch.Tensor:
    return torch.cat([part @ weight.T for part, weight in zip(rows.split(counts), weights)])


def assert_gemm_right(row: Row, counts: list[int] | None = None) -> None:
    layer, schedule, rows, counts = expert_rows(row, counts)
    gate = layer.weights.gate_up()[:, : row.ffn]
    out = grouped_gemm(rows, gate, schedule)
    assert_accurate(out, by_expert(rows.float(), gate.float(), counts), by_expert(rows, gate, counts))


@check
def grouped_gemm_matches_reference(row):
    assert_gemm_right(row)


@check
def grouped_gemm_output_shape(row):
    layer, schedule, rows, _ = expert_rows(row)
    out = grouped_gemm(rows, layer.weights.gate_up(), schedule)
    assert out.shape == (row.tokens * row.top_k, 2 * row.ffn)
    assert out.dtype == torch.float16


@check
def grouped_gemm_empty_experts(row):
    slots = row.tokens * row.top_k
    assert_gemm_right(row, [0, slots - 3, 0, 0, 3, 0, 0, 0])


def kernel_ffn(layer, rows: torch.Tensor, schedule, fused: bool) -> torch.Tensor:
    gate_up, ffn = layer.weights.gate_up(), layer.case.ffn_dim
    if fused:
        hidden = fused_gate_up(rows, gate_up, schedule)
    else:
        hidden = launch_silu_mul(
            grouped_gemm(rows, gate_up[:, :ffn], schedule), grouped_gemm(rows, gate_up[:, ffn:], schedule)
        )
    return grouped_gemm(hidden, layer.weights.down(), schedule)


def reference_ffn(layer, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    gate_up, ffn = layer.weights.gate_up().to(rows.dtype), layer.case.ffn_dim
    gate, up = by_expert(rows, gate_up[:, :ffn], counts), by_expert(rows, gate_up[:, ffn:], counts)
    return by_expert(torch.nn.functional.silu(gate) * up, layer.weights.down().to(rows.dtype), counts)


def assert_ffn_right(row: Row, *forms: bool) -> None:
    layer, schedule, rows, counts = expert_rows(row)
    exact, own = reference_ffn(layer, rows.float(), counts), reference_ffn(layer, rows, counts)
    for fused in forms:
        assert_accurate(kernel_ffn(layer, rows, schedule, fused), exact, own)


def assert_ffn_shape_and_finite(row: Row, fused: bool) -> None:
    layer, schedule, rows, _ = expert_rows(row)
    out = kernel_ffn(layer, rows, schedule, fused)
    assert out.shape == (row.tokens * row.top_k, row.hidden)
    assert out.dtype == torch.float16
    assert bool(out.isfinite().all())


@check
def expert_ffn_matches_reference(row):
    assert_ffn_right(row, False)


@check
def expert_ffn_output_shape(row):
    assert_ffn_shape_and_finite(row, fused=False)


@check
def expert_ffn_no_nan(row):
    assert_ffn_shape_and_finite(row, fused=False)


@check
def full_pipeline_matches_reference(row):
    expert_layer(row).assert_right(fused=False)


@check
def model_config_pipeline(row):
    expert_layer(row).assert_right(fused=False)


@check
def fused_ffn_matches_unfused(row):
    assert_ffn_right(row, True, False)


@check
def fused_ffn_no_nan(row):
    assert_ffn_shape_and_finite(row, fused=True)


@check
def fused_ffn_output_shape(row):
    assert_ffn_shape_and_finite(row, fused=True)


@check
def fused_forward_matches_reference(row):
    expert_layer(row).assert_right(fused=True)


@check
def fused_forward_model_configs(row):
    expert_layer(row).assert_right(fused=True)


@check
def fused_forward_single_token(row):
    expert_layer(row, tokens=1).assert_right(fused=True)


@check
def fused_sigmoid_gating(row):
    expert_layer(row, gating="sigmoid_renorm").assert_right(fused=True)
