"""Permute and unpermute-combine against index arithmetic in PyTorch."""

import pytest
import torch
from moe_cases import assert_accurate, random

from tritonmoe_bench.kernels.paper.permute import launch_permute, launch_unpermute_combine

SHAPES = [(1, 1, 16), (1, 4, 727), (3, 5, 577), (17, 2, 1408), (130, 3, 64), (5, 16, 2880), (2, 2, 9000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_permute(shape, index_dtype, dtype, device):
    tokens, top_k, hidden = shape
    x = random(tokens, hidden, dtype=dtype, device=device)
    order = torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(0)).to(device)
    rows, row_of_slot = launch_permute(x, order.to(index_dtype), top_k)
    assert torch.equal(rows, x[order // top_k])
    assert torch.equal(row_of_slot.long(), order.argsort())


def test_permute_takes_rows_that_lie_apart(dtype, device):
    wide = random(6, 100, dtype=dtype, device=device)
    rows, _ = launch_permute(wide[:, :70], torch.arange(6, device=device), 1)
    assert torch.equal(rows, wide[:, :70])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpermute_combine(shape, dtype, device):
    tokens, top_k, hidden = shape
    expert_out = random(tokens * top_k, hidden, dtype=dtype, device=device)
    weights = torch.rand(tokens, top_k, generator=torch.Generator().manual_seed(1)).to(device)
    row_of_slot = torch.randperm(tokens * top_k, generator=torch.Generator().manual_seed(2)).to(device)
    y = launch_unpermute_combine(expert_out, row_of_slot.to(torch.int32), top_k, weights)
    slots = expert_out[row_of_slot].view(tokens, top_k, hidden)
    exact = (slots.float() * weights[..., None]).sum(1)
    assert y.dtype == expert_out.dtype
    assert_accurate(y, exact, (slots * weights[..., None].to(slots.dtype)).sum(1))
    assert torch.equal(y, launch_unpermute_combine(expert_out, row_of_slot.to(torch.int32), top_k, weights))


def test_a_sum_that_16_bits_would_lose(device):
    expert_out = torch.tensor([[2048.0], [1.0], [1.0], [-2048.0]], dtype=torch.float16, device=device)
    row_of_slot = torch.arange(4, dtype=torch.int32, device=device)
    for weights in (torch.ones(1, 4, device=device), None):
        assert launch_unpermute_combine(expert_out, row_of_slot, 4, weights).item() == 2.0
