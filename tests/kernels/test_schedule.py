"""Invariants of the block schedule, whichever side builds it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper_steps import BUILDERS

from tritonmoe_bench.kernels.paper.schedule import max_blocks
from tritonmoe_bench.kernels.paper.tiles import BLOCK_M


@st.composite
def routings(draw):
    """(experts int32 [tokens, top_k], num_experts), from one token on one expert to all on a few of many."""
    num_experts = draw(st.sampled_from([1, 2, 5, 8, 60, 64, 130]))
    popular = draw(st.integers(1, num_experts))
    top_k = draw(st.integers(1, min(popular, 16)))
    tokens = draw(st.sampled_from([1, 2, 17, 63, 64, 65, 200, 700]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    chosen = torch.randperm(num_experts, generator=generator)[:popular]
    ranks = torch.rand(tokens, popular, generator=generator).argsort(dim=1)[:, :top_k]
    return chosen[ranks].to(torch.int32), num_experts


def assert_valid(schedule, experts, num_experts):
    """Each slot once, experts ascending, slots of one expert in order, and blocks that cover each expert's rows."""
    slots = experts.cpu().flatten().long()
    order, offsets = schedule.order.cpu().long(), schedule.offsets.cpu().long()
    counts = torch.bincount(slots, minlength=num_experts)
    assert torch.equal(order, slots.argsort(stable=True))
    assert torch.equal(offsets, torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]))
    block_expert, block_row = schedule.block_expert.tolist(), schedule.block_row.tolist()
    used = [(expert, row) for expert, row in zip(block_expert, block_row) if expert >= 0]
    expected = [
        (expert, row)
        for expert in range(num_experts)
        for row in range(int(offsets[expert]), int(offsets[expert + 1]), BLOCK_M)
    ]
    assert used == expected
    assert len(used) <= max_blocks(len(slots), num_experts)
    assert all(expert == -1 for expert in block_expert[len(used) :])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(routing=routings())
def test_both_builders_make_the_same_valid_schedule(routing, device):
    experts, num_experts = routing[0].to(device), routing[1]
    on_host, on_gpu = BUILDERS["host"](experts, num_experts), BUILDERS["gpu"](experts, num_experts)
    assert_valid(on_host, experts, num_experts)
    assert_valid(on_gpu, experts, num_experts)
    assert -1 not in on_host.block_expert.tolist()
    assert len(on_gpu.block_expert) == max_blocks(experts.numel(), num_experts)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts"),
    [(8192, 16, 16), (130, 16, 512), (1, 1, 512), (8192, 1, 1), (513, 8, 256), (65, 32, 1024)],
)
def test_large_and_small(builder, tokens, top_k, num_experts, device):
    generator = torch.Generator().manual_seed(1)
    ranks = torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k]
    experts = ranks.to(torch.int32).to(device)
    assert_valid(BUILDERS[builder](experts, num_experts), experts, num_experts)


@pytest.mark.parametrize("num_experts", [1, 3, 64, 1024])
@pytest.mark.parametrize("num_slots", [1, 2, 64, 65, 4096])
def test_the_upper_bound_holds_for_the_worst_routing_and_is_close_to_it(num_slots, num_experts):
    active = min(num_experts, num_slots)
    # The worst routing: every expert that can be active has one row over a whole number of blocks.
    spare, left = divmod(num_slots - active, BLOCK_M)
    counts = [1 + spare * BLOCK_M + left] + [1] * (active - 1)
    needed = sum(-(-count // BLOCK_M) for count in counts)
    assert needed <= max_blocks(num_slots, num_experts) <= needed + active // BLOCK_M + 1
