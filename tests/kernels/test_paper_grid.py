"""The paper's own 162 correctness cases: one test of ours for each row of results/paper/test_grid.csv.

What a row asserts follows from its name and its numbers. The dtype is the paper's, fp16. Tokens, experts and top_k are
the row's, and so is hidden_dim where the row or, for routing and permuting, its model gives one. Expert GEMMs run with
hidden and ffn sizes scaled down to 128, for the rows of a real model to 1/32 of its own: the interpreter has two cores.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from moe_cases import assert_accurate, make_layer, random, rounded_logits
from tritonmoe_bench.baselines.reference import moe_forward, route
from tritonmoe_bench.kernels.fused_gate_up import fused_gate_up
from tritonmoe_bench.kernels.gating import Gating
from tritonmoe_bench.kernels.grouped_gemm import grouped_gemm
from tritonmoe_bench.kernels.permute import permute, unpermute_combine
from tritonmoe_bench.kernels.router import router, score_topk
from tritonmoe_bench.kernels.schedule import schedule_on_host
from tritonmoe_bench.kernels.silu_mul import silu_mul

GRID = Path(__file__).resolve().parents[2] / "results" / "paper" / "test_grid.csv"
MODELS = {
    "mixtral-8x7b": (8, 2, 4096, 14336),
    "mixtral-8x22b": (8, 2, 6144, 16384),
    "qwen2-moe-57b": (64, 4, 3584, 2560),
    "deepseek-v3": (256, 8, 7168, 2048),
}
"""experts, top_k, hidden, ffn. The paper calls a top-4 layer Qwen2-MoE-57B."""
LARGE = "deepseek-v3"
"""The model whose expert count the rows named `large` mean; they name none."""
SCALE = 32
SOFTMAX, SIGMOID = Gating(), Gating("sigmoid", renormalize=True)


@dataclass(frozen=True)
class Row:
    """A row of the grid; numbers that it leaves open take the values that most rows of its kind have."""

    group: str
    case: str
    model: str
    tokens: int
    experts: int
    top_k: int
    hidden: int
    ffn: int
    id: str
    device: str = "cpu"


def read_rows() -> list[Row]:
    rows = []
    with open(GRID, newline="") as file:
        for line in csv.DictReader(file):
            model = line["model_name"] or (LARGE if line["case"].startswith("large") else "")
            experts, top_k, hidden, ffn = MODELS[model] if model else (8, 2, 128, 128)
            given = [line[name] for name in ("model_name", "num_tokens", "num_experts", "top_k", "hidden_dim")]
            rows.append(
                Row(
                    line["group"], line["case"], model, int(line["num_tokens"] or 64),
                    int(line["num_experts"] or experts), int(line["top_k"] or top_k), int(line["hidden_dim"] or hidden),
                    ffn, "-".join([line["group"], line["case"], *filter(None, given)]),
                )
            )  # fmt: skip
    return rows


ROWS = read_rows()
CHECKS: dict[str, Callable[[Row], None]] = {}


def check(function: Callable[[Row], None]) -> Callable[[Row], None]:
    """Registers a function as what the rows with its name as their case assert."""
    CHECKS[function.__name__] = function
    return function


@pytest.mark.paper_grid
@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_paper_grid(row, device):
    CHECKS[row.case](Row(**{**row.__dict__, "device": device}))


def test_the_grid_is_the_paper_s():
    assert len(ROWS) == 162
    assert len({row.id for row in ROWS}) == 162
    assert {row.case for row in ROWS} == set(CHECKS)


def logits_of(row: Row) -> torch.Tensor:
    return rounded_logits(row.tokens, row.experts).to(row.device)


def assert_routes_as_reference(row: Row, gating: Gating) -> None:
    weights, experts = score_topk(logits_of(row), row.top_k, gating)
    expected_weights, expected_experts = route(logits_of(row), row.top_k, gating)
    assert torch.equal(experts.long(), expected_experts)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=1e-9)


def assert_model_routes(row: Row) -> None:
    """The whole router, GEMM included, with the model's own experts, top_k and hidden size."""
    layer = make_layer(
        row.device, tokens=row.tokens, experts=row.experts, top_k=row.top_k, hidden=row.hidden, ffn=1, dtype="fp16"
    )
    weights, experts = router(layer.x, layer.weights.router(), row.top_k, SOFTMAX)
    expected_weights, expected_experts = route(layer.x[:, : row.experts], row.top_k, SOFTMAX)
    assert torch.equal(experts.long(), expected_experts)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=1e-9)


@check
def topk_indices_valid(row):
    _, experts = score_topk(logits_of(row), row.top_k, SOFTMAX)
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
    weights, _ = score_topk(logits_of(row), row.top_k, SOFTMAX)
    fraction = logits_of(row).softmax(-1).topk(row.top_k).values.sum(-1)
    torch.testing.assert_close(weights.sum(-1), fraction, rtol=2e-6, atol=0)
    assert bool((fraction < 1).all())


@check
def softmax_weights_non_negative(row):
    weights, _ = score_topk(logits_of(row) * 100, row.top_k, SOFTMAX)
    assert bool((weights >= 0).all())


@check
def sigmoid_weights_match_reference(row):
    assert_routes_as_reference(row, Gating("sigmoid"))


@check
def sigmoid_weights_normalized(row):
    weights, _ = score_topk(logits_of(row), row.top_k, SIGMOID)
    torch.testing.assert_close(weights.sum(-1), torch.ones(row.tokens, device=row.device), rtol=1e-6, atol=0)


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
    assert_routes_as_reference(Row(**{**row.__dict__, "tokens": 1}), SOFTMAX)


@check
def topk_equals_num_experts(row):
    every = Row(**{**row.__dict__, "top_k": row.experts})
    assert_routes_as_reference(every, SOFTMAX)
    weights, _ = score_topk(logits_of(every), every.top_k, SOFTMAX)
    torch.testing.assert_close(weights.sum(-1), torch.ones(row.tokens, device=row.device), rtol=1e-6, atol=0)


def assert_finite_at(row: Row, scale: float) -> None:
    for gating in (SOFTMAX, SIGMOID):
        weights, experts = score_topk(logits_of(row) * scale, row.top_k, gating)
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
        weights, experts = score_topk(logits_of(row).to(dtype), row.top_k, SOFTMAX)
        assert (weights.dtype, experts.dtype) == (torch.float32, torch.int32)


@check
def deterministic(row):
    first, second = (score_topk(logits_of(row), row.top_k, SOFTMAX) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def expert_layer(row: Row, gating: str = "softmax", **changes):
    """A layer for the expert GEMMs, scaled down as the module says."""
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
def reference_permute_unpermute_roundtrip(row):
    x, experts = random(row.tokens, row.hidden, dtype="fp16", device=row.device), routed_experts(row)
    rows, row_of_slot, _ = reference_permute(x, experts)
    assert torch.equal(rows[row_of_slot].view(row.tokens, row.top_k, -1), x[:, None].expand(-1, row.top_k, -1))


@check
def reference_sigmoid_gating(row):
    layer = expert_layer(row, gating="sigmoid_renorm")
    sigmoid, softmax = (
        moe_forward(layer.x, layer.weights.router(), layer.expert, row.top_k, gating) for gating in (SIGMOID, SOFTMAX)
    )
    assert bool(sigmoid.isfinite().all())
    assert not torch.equal(sigmoid, softmax)


def routed_experts(row: Row) -> torch.Tensor:
    return route(logits_of(row), row.top_k, SOFTMAX)[1].to(torch.int32)


def reference_permute(x: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows in expert order, row of each slot, slot of each row), by PyTorch."""
    order = experts.flatten().long().argsort(stable=True)
    return x[order // experts.shape[1]], order.argsort(), order


def permuted(row: Row):
    x, experts = random(row.tokens, row.hidden, dtype="fp16", device=row.device), routed_experts(row)
    schedule = schedule_on_host(experts, row.experts)
    return x, experts, schedule, *permute(x, schedule.order, row.top_k)


@check
def permute_matches_reference(row):
    x, experts, _, rows, row_of_slot = permuted(row)
    expected_rows, expected_row_of_slot, _ = reference_permute(x, experts)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(row_of_slot.long(), expected_row_of_slot)


@check
def permute_output_shape(row):
    *_, rows, row_of_slot = permuted(row)
    assert rows.shape == (row.tokens * row.top_k, row.hidden)
    assert row_of_slot.shape == (row.tokens * row.top_k,)
    assert (rows.dtype, row_of_slot.dtype) == (torch.float16, torch.int32)


@check
def expert_offsets_sum(row):
    _, experts, schedule, *_ = permuted(row)
    assert schedule.offsets[-1] == row.tokens * row.top_k
    counts = torch.bincount(experts.flatten(), minlength=row.experts)
    assert torch.equal(schedule.offsets.diff().long(), counts)


@check
def expert_contiguity(row):
    _, experts, schedule, *_ = permuted(row)
    expert_of_row = experts.flatten()[schedule.order.long()]
    for expert in range(row.experts):
        assert bool((expert_of_row[schedule.offsets[expert] : schedule.offsets[expert + 1]] == expert).all())


@check
def permute_preserves_values(row):
    x, _, _, rows, _ = permuted(row)
    repeated = x.repeat_interleave(row.top_k, dim=0)
    assert torch.equal(rows.float().sort(dim=0).values, repeated.float().sort(dim=0).values)


@check
def unpermute_matches_reference(row):
    *_, row_of_slot = permuted(row)
    weights, _ = route(logits_of(row), row.top_k, SOFTMAX)
    expert_out = random(row.tokens * row.top_k, row.hidden, dtype="fp16", device=row.device, seed=3)
    slots = expert_out[row_of_slot.long()].view(row.tokens, row.top_k, row.hidden)
    exact = (slots.float() * weights[..., None]).sum(1)
    own = (slots * weights[..., None].half()).sum(1)
    assert_accurate(unpermute_combine(expert_out, row_of_slot, weights), exact, own)


@check
def unpermute_output_shape(row):
    *_, rows, row_of_slot = permuted(row)
    y = unpermute_combine(rows, row_of_slot, torch.ones(row.tokens, row.top_k, device=row.device))
    assert y.shape == (row.tokens, row.hidden)
    assert y.dtype == torch.float16


def assert_roundtrip(row: Row, total: float = 1.0) -> None:
    """The slots of a token come back to it, so with equal weights of a given sum x comes back times that sum."""
    x, *_, rows, row_of_slot = permuted(row)
    weights = torch.full((row.tokens, row.top_k), total / row.top_k, device=row.device)
    # top_k and the sums are powers of two, so nothing is rounded on the way.
    assert torch.equal(unpermute_combine(rows, row_of_slot, weights), x * total)


@check
def roundtrip_identity(row):
    assert_roundtrip(row)


@check
def roundtrip_with_scaling(row):
    assert_roundtrip(row, 0.5)
    assert_roundtrip(row, 4.0)


@check
def roundtrip_no_nan(row):
    *_, rows, row_of_slot = permuted(row)
    weights, _ = route(logits_of(row), row.top_k, SOFTMAX)
    assert bool(unpermute_combine(rows, row_of_slot, weights).isfinite().all())


@check
def model_config_roundtrip(row):
    assert_roundtrip(row)


def expert_rows(row: Row, counts: list[int] | None = None):
    """(layer, schedule, rows in expert order, rows of each expert); `counts` replaces the routing that is drawn."""
    layer = expert_layer(row)
    if counts is None:
        experts = routed_experts(row)
    else:
        experts = torch.repeat_interleave(torch.arange(row.experts), torch.tensor(counts))
        experts = experts.to(device=row.device, dtype=torch.int32).view(-1, row.top_k)
    schedule = schedule_on_host(experts, row.experts)
    rows, _ = permute(layer.x, schedule.order, row.top_k)
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
        hidden = silu_mul(grouped_gemm(rows, gate_up[:, :ffn], schedule), grouped_gemm(rows, gate_up[:, ffn:], schedule))
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
