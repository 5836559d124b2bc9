"""Grouped GEMM, SiLU x up and the fused gate+up kernel against PyTorch, expert by expert."""

import numpy as np
import pytest
import torch
from moe_cases import assert_accurate, random
from paper_steps import BUILDERS, fused_gate_up, grouped_gemm, schedule_on_host

from tritonmoe_bench.kernels.paper.silu_mul import launch_silu_mul
from tritonmoe_bench.kernels.paper.tiles import GemmTile

ROUTINGS = {
    "one_row": [1],
    "empty_experts": [0, 3, 0, 0, 130, 0],
    "hot_expert": [2, 0, 1200, 1],
    "full_blocks": [64, 128, 64],
    "one_over": [65, 1, 129],
    "sixty_experts": [7 * (index % 3) for index in range(60)],
}
"""Rows of each expert."""
SHAPES = [(32, 48), (577, 727), (180, 136)]
"""(n, k): one that fits a tile, one that nothing divides, and 1/16 of gpt-oss's 2880 by a multiple of 8."""
SMALL_TILE = GemmTile(32, 32, 4, 2)


def make_schedule(counts, device, builder=schedule_on_host):
    experts = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(torch.int32)
    return builder(experts[torch.randperm(len(experts))].view(-1, 1).to(device), len(counts))


def by_expert(rows, weights, counts):
    return torch.cat([part @ weight.T for part, weight in zip(rows.split(counts), weights)])


def silu_product(gate, up):
    return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_grouped_gemm_routings(routing, builder, dtype, device):
    counts, (n, k) = ROUTINGS[routing], (40, 56)
    rows = random(sum(counts), k, dtype=dtype, device=device)
    weights = random(len(counts), n, k, dtype=dtype, device=device, seed=1, scale=k**-0.5)
    out = grouped_gemm(rows, weights, make_schedule(counts, device, builder))
    assert_accurate(out, by_expert(rows.float(), weights.float(), counts), by_expert(rows, weights, counts))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", [None, SMALL_TILE], ids=["default", "small"])
def test_grouped_gemm_shapes(shape, tile, dtype, device):
    n, k = shape
    counts = [66, 0, 5]
    rows = random(sum(counts), k, dtype=dtype, device=device)
    weights = random(len(counts), n, k, dtype=dtype, device=device, seed=1, scale=k**-0.5)
    out = grouped_gemm(rows, weights, make_schedule(counts, device), tile)
    assert_accurate(out, by_expert(rows.float(), weights.float(), counts), by_expert(rows, weights, counts))


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_grouped_gemm_times_the_scores_of_the_slots(builder, dtype, device):
    counts = [66, 0, 5, 29]
    experts = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))[torch.randperm(100)].view(50, 2)
    scores = torch.rand(50, 2, device=device)
    schedule = builder(experts.to(device=device, dtype=torch.int32), 4)
    rows = random(100, 56, dtype=dtype, device=device)
    weights = random(4, 40, 56, dtype=dtype, device=device, seed=1, scale=56**-0.5)
    out = grouped_gemm(rows, weights, schedule, SMALL_TILE, scores)
    times = scores.flatten()[schedule.order.long()].unsqueeze(1)
    exact, own = (by_expert(rows.to(kind), weights.to(kind), counts) for kind in (torch.float32, rows.dtype))
    assert_accurate(out, exact * times, own * times.to(own.dtype))


def test_scores_are_applied_before_an_output_is_rounded_to_16_bits(device):
    rows, weights = (torch.full(shape, 256.0, dtype=torch.float16, device=device) for shape in ((2, 16), (1, 8, 16)))
    schedule = make_schedule([2], device)
    assert grouped_gemm(rows, weights, schedule).isinf().all()
    scores = torch.tensor([[2.0**-8], [2.0**-10]], device=device)
    out = grouped_gemm(rows, weights, schedule, None, scores)
    assert out[:, 0].tolist() == (2.0**20 * scores.flatten()[schedule.order.long()]).tolist()


def test_grouped_gemm_takes_half_of_a_stack(dtype, device):
    counts = [3, 4]
    rows = random(7, 24, dtype=dtype, device=device)
    stacked = random(2, 40, 24, dtype=dtype, device=device, seed=1)
    schedule = make_schedule(counts, device)
    halves = [grouped_gemm(rows, half, schedule) for half in (stacked[:, :20], stacked[:, 20:])]
    assert torch.equal(torch.cat(halves, dim=1), grouped_gemm(rows, stacked, schedule))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_fused_gate_up_routings(routing, builder, dtype, device):
    assert_fused_right(ROUTINGS[routing], 40, 56, dtype, device, None, builder)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", [None, SMALL_TILE], ids=["default", "small"])
def test_fused_gate_up_shapes(shape, tile, dtype, device):
    assert_fused_right([66, 0, 5], *shape, dtype, device, tile, schedule_on_host)


def assert_fused_right(counts, ffn, k, dtype, device, tile, builder):
    rows = random(sum(counts), k, dtype=dtype, device=device)
    gate_up = random(len(counts), 2 * ffn, k, dtype=dtype, device=device, seed=1, scale=k**-0.5)
    hidden = fused_gate_up(rows, gate_up, make_schedule(counts, device, builder), tile)

    def reference(rows, gate_up):
        return silu_product(by_expert(rows, gate_up[:, :ffn], counts), by_expert(rows, gate_up[:, ffn:], counts))

    assert_accurate(hidden, reference(rows.float(), gate_up.float()), reference(rows, gate_up))


@pytest.mark.parametrize("shape", [(1, 1), (3, 577), (70, 1408), (300, 1024)], ids=str)
def test_silu_mul(shape, dtype, device):
    gate, up = (random(*shape, dtype=dtype, device=device, seed=seed, scale=3.0) for seed in (0, 1))
    assert_accurate(launch_silu_mul(gate, up), silu_product(gate.float(), up.float()), silu_product(gate, up))


def test_silu_of_large_gates_neither_overflows_nor_loses_its_sign(device):
    gate = torch.tensor([[60000.0, -60000.0, 0.0, -20.0]], dtype=torch.float16, device=device)
    hidden = launch_silu_mul(gate, torch.ones_like(gate))
    assert hidden[0, :3].tolist() == [60000.0, 0.0, 0.0]
    assert hidden[0, 3] <= 0


def test_an_expert_beyond_2_to_the_31_elements_is_found(device):
    stack = random(2, 16, 16, dtype="fp16", device=device, seed=1)
    apart = 2**31
    if device == "cpu":  # NumPy's zeros are pages that take no memory until they are written
        storage = torch.from_numpy(np.zeros(apart + 256, dtype=np.float16))
    else:
        storage = torch.empty(apart + 256, dtype=torch.float16, device=device)
    far = torch.as_strided(storage, stack.shape, (apart, 16, 1)).copy_(stack)
    counts = [2, 3]
    rows = random(5, 16, dtype="fp16", device=device)
    schedule = make_schedule(counts, device)
    assert torch.equal(grouped_gemm(rows, far, schedule), grouped_gemm(rows, stack, schedule))
    assert torch.equal(fused_gate_up(rows, far, schedule), fused_gate_up(rows, stack, schedule))
