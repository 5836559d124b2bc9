"""What the rows on permute and unpermute assert."""

from __future__ import annotations

import torch
from moe_cases import assert_accurate, random
from paper_steps import schedule_on_host

from paper_grid.rows import SOFTMAX, Row, check, logits_of, routed_experts
from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.kernels.paper.permute import launch_permute, launch_unpermute_combine


def reference_permute(x: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows in expert order, row of each slot, slot of each row), by PyTorch."""
    order = experts.flatten().long().argsort(stable=True)
    return x[order // experts.shape[1]], order.argsort(), order


def permuted(row: Row):
    x, experts = random(row.tokens, row.hidden, dtype="fp16", device=row.device), routed_experts(row)
    schedule = schedule_on_host(experts, row.experts)
    return x, experts, schedule, *launch_permute(x, schedule.order, row.top_k)


@check
def reference_permute_unpermute_roundtrip(row):
    x, experts = random(row.tokens, row.hidden, dtype="fp16", device=row.device), routed_experts(row)
    rows, row_of_slot, _ = reference_permute(x, experts)
    assert torch.equal(rows[row_of_slot].view(row.tokens, row.top_k, -1), x[:, None].expand(-1, row.top_k, -1))


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
    assert_accurate(launch_unpermute_combine(expert_out, row_of_slot, row.top_k, weights), exact, own)


@check
def unpermute_output_shape(row):
    *_, rows, row_of_slot = permuted(row)
    y = launch_unpermute_combine(rows, row_of_slot, row.top_k, torch.ones(row.tokens, row.top_k, device=row.device))
    assert y.shape == (row.tokens, row.hidden)
    assert y.dtype == torch.float16


def assert_roundtrip(row: Row, total: float = 1.0) -> None:
    """The slots of a token come back to it, so with equal weights of a given sum x comes back times that sum."""
    x, *_, rows, row_of_slot = permuted(row)
    weights = torch.full((row.tokens, row.top_k), total / row.top_k, device=row.device)
    # top_k and the sums are powers of two, so nothing is rounded on the way.
    assert torch.equal(launch_unpermute_combine(rows, row_of_slot, row.top_k, weights), x * total)


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
    assert bool(launch_unpermute_combine(rows, row_of_slot, row.top_k, weights).isfinite().all())


@check
def model_config_roundtrip(row):
    assert_roundtrip(row)
