"""Rows in expert order and the table of row blocks of `fast`, for any routing."""

import os

import pytest
import torch
from fast_cases import list_blocks, logits_that_choose
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tritonmoe_bench.kernels.fast.blocks import launch_place, launch_routing
from tritonmoe_bench.kernels.fast.local import Local
from tritonmoe_bench.kernels.fast.tile_types import HEIGHTS
from tritonmoe_bench.kernels.gating import Gating
from tritonmoe_bench.kernels.paper.schedule import max_blocks
from tritonmoe_bench.kernels.paper.tiles import GROUP_M

INTERPRETED = "TRITON_INTERPRET" in os.environ


def assert_right_blocks(blocks, experts: torch.Tensor, num_experts: int, block_m: int) -> None:
    """Slots in expert order, in their own order in an expert; blocks that cover all rows once; the rest zero."""
    expected = list_blocks(experts, num_experts, block_m)
    assert torch.equal(blocks.order.cpu(), expected.order)
    assert torch.equal(blocks.table.cpu(), expected.table)


def programs_share_out_the_tiles(table: torch.Tensor, num_columns: int = 3) -> bool:
    """As the GEMMs read the table: each (row block, column) has one program, and blocks of a group one expert."""
    program = torch.arange(table.shape[1] * num_columns)
    first, height = table[3:, program // num_columns].long()
    position = program - first * num_columns
    position, first, height = position[height > 0], first[height > 0], height[height > 0]
    taken = torch.stack([first + position % height, position // height], dim=1)
    every = torch.cartesian_prod(torch.nonzero(table[2])[:, 0], torch.arange(num_columns))
    return (
        len(taken) == len(every)
        and torch.equal(taken.unique(dim=0), every)
        and int(table[4].max()) <= GROUP_M
        and torch.equal(table[0][first], table[0][first + height - 1])
    )


def draw_experts(tokens: int, top_k: int, num_experts: int, popular: int, seed: int) -> torch.Tensor:
    """int64 [tokens, top_k] among `popular` of the experts."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(num_experts, generator=generator)[:popular]
    return chosen[torch.rand(tokens, popular, generator=generator).argsort(dim=1)[:, :top_k]]


@st.composite
def routings(draw):
    """(experts int64 [tokens, top_k], num_experts, block_m), from one token to many on a few of many experts."""
    num_experts = draw(st.sampled_from([1, 2, 5, 8, 60] if INTERPRETED else [1, 5, 60]))
    popular = draw(st.integers(1, num_experts))
    top_k = draw(st.integers(1, min(popular, 16)) if INTERPRETED else st.just(min(popular, 3)))
    tokens = draw(st.sampled_from([1, 2, 7, 8, 17, 64, 65, 128, 129, 300, 700]))
    seed = draw(st.integers(0, 2**31))
    block_m = draw(st.sampled_from(HEIGHTS if INTERPRETED else [16, 160]))
    return draw_experts(tokens, top_k, num_experts, popular, seed), num_experts, block_m


# Every other shape is another program to compile on a GPU.
@settings(
    max_examples=30 if INTERPRETED else 25,
    deadline=None,
    derandomize=not INTERPRETED,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(routing=routings())
def test_order_and_table(routing, device):
    experts, num_experts, block_m = routing
    logits = logits_that_choose(experts, num_experts).to(device)
    blocks = launch_routing(logits[None], experts.shape[1], Gating(), None, block_m)
    assert_right_blocks(blocks, experts, num_experts, block_m)
    assert programs_share_out_the_tiles(blocks.table.cpu())


@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts", "block_m"),
    [
        (8192, 16, 16, 64),
        (5000, 1, 3, 16),
        (700, 1, 1, 192),
        (130, 16, 150, 16),
        (1, 1, 300, 128),
        (513, 8, 40, 144),
        (9, 32, 1000, 64),
    ],
)
def test_order_and_table_at_the_extremes(tokens, top_k, num_experts, block_m, device):
    experts = draw_experts(tokens, top_k, num_experts, num_experts, 1)
    logits = logits_that_choose(experts, num_experts).to(device)
    assert_right_blocks(launch_routing(logits[None], top_k, Gating(), None, block_m), experts, num_experts, block_m)


@pytest.mark.parametrize("expert", [0, 1])
def test_one_expert_may_have_every_slot_of_a_chunk(expert, device):
    experts = torch.full((2**14 + 5, 1), expert)
    logits = logits_that_choose(experts, 2).to(device)
    assert_right_blocks(launch_routing(logits[None], 1, Gating(), None, 64), experts, 2, 64)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("tokens", "block_m"), [(3, 16), (40, 16), (300, 32)])
def test_slots_without_an_expert_here_are_in_no_block(tokens, block_m, mapped, device):
    """Blocks cover the rows of the others once, in the order of experts, and do not lie upon each other."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(12, generator=generator)[:4] for _ in range(tokens)]) - 2  # -2 and -1: of nobody
    table_of_ids = torch.tensor([3, -1, 0, 7, -1, 1, 2, -1, 5, -1]) if mapped else None
    here = ids if table_of_ids is None else torch.where(ids < 0, -1, table_of_ids[ids.clamp(min=0)])
    local = Local(8, None if table_of_ids is None else table_of_ids.int().to(device))
    order, table, _ = launch_place(ids.int().to(device), 8, block_m, local)
    flat = torch.where((here < 0) | (here >= 8), 8, here).flatten()
    slots = flat.argsort(stable=True)[: int((flat < 8).sum())]
    assert torch.equal(order[: len(slots)].cpu().long(), slots)
    experts, rows, heights, firsts, neighbours = table.cpu()
    covered = [
        (int(expert), row) for expert, first, height in zip(experts, rows, heights)
        for row in range(int(first), int(first + height))
    ]  # fmt: skip
    assert covered == list(zip(flat[slots].tolist(), range(len(slots))))
    assert int(heights.max()) <= block_m
    unused = heights == 0
    assert not table.cpu()[:, unused].any()
    assert (neighbours[~unused] > 0).all()
    assert torch.equal(experts[~unused], experts[firsts[~unused].long()])


@pytest.mark.parametrize("block_m", [16, 256])
def test_table_is_long_enough_for_the_worst_routing(block_m, device):
    """One row more than whole blocks for as many experts as can have that."""
    loads = [1] * 6 + [3 * block_m + 1]
    experts = torch.repeat_interleave(torch.arange(len(loads)), torch.tensor(loads)).unsqueeze(1)
    logits = logits_that_choose(experts, len(loads)).to(device)
    blocks = launch_routing(logits[None], 1, Gating(), None, block_m)
    assert int((blocks.table[2] > 0).sum()) == blocks.table.shape[1] == max_blocks(sum(loads), len(loads), block_m)
    assert_right_blocks(blocks, experts, len(loads), block_m)


def test_routing_of_parts_and_of_their_sum_is_one(device):
    pieces = torch.randint(-6, 7, (4, 70, 8), generator=torch.Generator().manual_seed(3)).to(device) / 2.0
    split = launch_routing(pieces, 3, Gating(renormalize=True), None, 64)
    whole = launch_routing(pieces.sum(0, keepdim=True), 3, Gating(renormalize=True), None, 64)
    assert torch.equal(split.order, whole.order)
    assert torch.equal(split.table, whole.table)
    torch.testing.assert_close(split.weights, whole.weights, rtol=1e-6, atol=0)
