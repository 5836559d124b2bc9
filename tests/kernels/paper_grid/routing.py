"""What the rows on routing assert."""

from __future__ import annotations

from dataclasses import replace

import torch
from moe_cases import make_layer

from paper_grid.rows import SIGMOID, SOFTMAX, Row, check, logits_of
from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.kernels.gating import Gating
from tritonmoe_bench.kernels.paper.router import launch_router, launch_score_topk


def assert_routes_as_reference(row: Row, gating: Gating) -> None:
    weights, experts = launch_score_topk(logits_of(row), row.top_k, gating)
    expected_weights, expected_experts = route(logits_of(row), row.top_k, gating)
    assert torch.equal(experts.long(), expected_experts)
    torch.testing.assert_close(weights, expected_weights, rtol=5e-6, atol=1e-9)


def assert_model_routes(row: Row) -> None:
    """The whole router, GEMM included, with the model's own experts, top_k and hidden size."""
    layer = make_layer(
        row.device, tokens=row.tokens, experts=row.experts, top_k=row.top_k, hidden=row.hidden, ffn=1, dtype="fp16"
    )
    weights, experts = launch_router(layer.x, layer.weights.router(), row.top_k, SOFTMAX)
    expected_weights, expected_experts = route(layer.x[:, : row.experts], row.top_k, SOFTMAX)
    assert torch.equal(experts.long(), expected_experts)
    torch.testing.assert_close(weights, expected_weights, rtol=5e-6, atol=1e-9)


@check
def topk_indices_valid(row):
    _, experts = launch_score_topk(logits_of(row), row.top_k, SOFTMAX)
    assert experts.shape == (row.tokens, row.top_k)
    assert int(experts.min()) >= 0
    assert int(experts.max()) < row.experts
    assert all(len(set(chosen)) == row.top_k for chosen in experts.tolist())
    best = logits_of(row).topk(row.top_k).values
    torch.testing.assert_close(logits_of(row).gather(1, experts.long()), best, rtol=0, atol=0)


@check
def softmax_weights_match_reference(row):
    assert_routes_as_reference(row, SOFTMAX)


@check
def softmax_weights_sum_to_topk_fraction(row):
    weights, _ = launch_score_topk(logits_of(row), row.top_k, SOFTMAX)
    fraction = logits_of(row).softmax(-1).topk(row.top_k).values.sum(-1)
    torch.testing.assert_close(weights.sum(-1), fraction, rtol=5e-6, atol=0)
    assert bool((fraction < 1).all())


@check
def softmax_weights_non_negative(row):
    weights, _ = launch_score_topk(logits_of(row) * 100, row.top_k, SOFTMAX)
    assert bool((weights >= 0).all())


@check
def sigmoid_weights_match_reference(row):
    assert_routes_as_reference(row, Gating("sigmoid"))


@check
def sigmoid_weights_normalized(row):
    weights, _ = launch_score_topk(logits_of(row), row.top_k, SIGMOID)
    torch.testing.assert_close(weights.sum(-1), torch.ones(row.tokens, device=row.device), rtol=3e-6, atol=0)


@check
def small_expert_count(row):
    assert row.experts == 8
    assert_model_routes(row)


@check
def medium_expert_count(row):
    assert row.experts == 64
    assert_model_routes(row)


@check
def large_expert_count(row):
    assert row.experts == 256
    assert_model_routes(row)


@check
def single_token(row):
    assert_routes_as_reference(replace(row, tokens=1), SOFTMAX)


@check
def topk_equals_num_experts(row):
    every = replace(row, top_k=row.experts)
    assert_routes_as_reference(every, SOFTMAX)
    weights, _ = launch_score_topk(logits_of(every), every.top_k, SOFTMAX)
    torch.testing.assert_close(weights.sum(-1), torch.ones(row.tokens, device=row.device), rtol=3e-6, atol=0)


def assert_finite_at(row: Row, scale: float) -> None:
    for gating in (SOFTMAX, SIGMOID):
        weights, experts = launch_score_topk(logits_of(row) * scale, row.top_k, gating)
        assert bool(weights.isfinite().all())
        assert all(len(set(chosen)) == row.top_k for chosen in experts.tolist())


@check
def no_nan_with_large_logits(row):
    assert_finite_at(row, 1e4)


@check
def no_nan_with_small_logits(row):
    assert_finite_at(row, 1e-6)


@check
def output_dtypes(row):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        weights, experts = launch_score_topk(logits_of(row).to(dtype), row.top_k, SOFTMAX)
        assert (weights.dtype, experts.dtype) == (torch.float32, torch.int32)


@check
def deterministic(row):
    first, second = (launch_score_topk(logits_of(row), row.top_k, SOFTMAX) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
