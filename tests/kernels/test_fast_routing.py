"""Routing of `fast`: experts and weights against the reference; order and table of blocks for any routing."""

import os
from dataclasses import replace

import pytest
import torch
from fast_cases import list_blocks, logits_that_choose
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_cases import rounded_logits

from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.kernels.fast.blocks import launch_place, launch_routing
from tritonmoe_bench.kernels.fast.local import Local
from tritonmoe_bench.kernels.fast.routing import launch_top_k
from tritonmoe_bench.kernels.fast.tile_types import HEIGHTS
from tritonmoe_bench.kernels.gating import GATINGS, Gating
from tritonmoe_bench.kernels.paper.schedule import max_blocks
from tritonmoe_bench.kernels.paper.tiles import GROUP_M

GATINGS_TO_TEST = GATINGS | {
    "groups_by_bias": Gating("sigmoid", groups=4, top_groups=1, correction_bias=True),
    "groups_of_softmax": Gating("softmax", True, groups=4, top_groups=2, scale=0.5),
    "softmax_with_bias": Gating("softmax", correction_bias=True),
}
GROUPED = {name for name, gating in GATINGS_TO_TEST.items() if gating.groups > 1}
MANY = 128
SHAPES = [(1, 16, 1), (3, 32, 4), (17, 16, 8), (60, 64, 4), (5, MANY, 8), (2, 512, 8), (33, 2 * MANY, 8)]
PLAIN_SHAPES = [
    (1, 1, 1), (3, 5, 5), (17, 60, 4), (300, 8, 2), (7, MANY + 1, 16), (33, 384, 8), (8, 16, 16), (5, 32, 32),
    (9, MANY, 32), (4, 512, 22), (3, 896, 16), (2, 1024, 32),
]  # fmt: skip
GROUPS_OF_ANY_SIZE = [(160, 8, 3, 6), (12, 3, 2, 7), (60, 20, 5, 9), (6, 2, 1, 3), (35, 7, 7, 17), (1020, 12, 4, 32)]
"""(experts, groups, top groups, top-k)."""
INTERPRETED = "TRITON_INTERPRET" in os.environ


def correction_bias(num_experts: int, gating: Gating, device) -> torch.Tensor | None:
    bias = (torch.randn(num_experts, generator=torch.Generator().manual_seed(5)) * 0.1).to(device)
    return bias if gating.correction_bias else None


def top_k_of(logits, top_k, gating, bias=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts, weights) of logits [tokens, experts] in one part."""
    return launch_top_k(logits[None], top_k, gating, bias)


def assert_routes_as_reference(logits, top_k, gating) -> None:
    bias = correction_bias(logits.shape[1], gating, logits.device)
    experts, weights = top_k_of(logits, top_k, gating, bias)
    expected_weights, expected_experts = route(logits, top_k, gating, bias)
    assert (experts.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert torch.equal(experts.long(), expected_experts)
    # A GPU's exp and division are good to a few units in the last place, and exp multiplies the error of its argument.
    torch.testing.assert_close(weights, expected_weights, rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("gating", GATINGS_TO_TEST)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape, gating, device):
    tokens, num_experts, top_k = shape
    gate = GATINGS_TO_TEST[gating]
    top_k = min(top_k, gate.top_groups * (num_experts // gate.groups))
    assert_routes_as_reference(rounded_logits(tokens, num_experts).to(device), top_k, gate)


@pytest.mark.parametrize("gating", sorted(set(GATINGS_TO_TEST) - GROUPED))
@pytest.mark.parametrize("shape", PLAIN_SHAPES, ids=str)
def test_any_number_of_experts_without_groups(shape, gating, device):
    tokens, num_experts, top_k = shape
    assert_routes_as_reference(rounded_logits(tokens, num_experts).to(device), top_k, GATINGS_TO_TEST[gating])


@pytest.mark.parametrize("gating", [Gating("sigmoid", True, correction_bias=True), Gating("softmax", True)], ids=str)
@pytest.mark.parametrize("shape", GROUPS_OF_ANY_SIZE, ids=str)
def test_groups_of_any_size(shape, gating, device):
    num_experts, groups, top_groups, top_k = shape
    gate = replace(gating, groups=groups, top_groups=top_groups)
    logits = rounded_logits(9, num_experts).to(device)
    logits[3] = 0.0  # all experts and groups are equal
    logits[4, ::2] = float("-inf")
    logits[5] = float("-inf")
    logits[6] = float("nan")
    experts, weights = top_k_of(logits, top_k, gate, correction_bias(num_experts, gate, device))
    assert int(experts.min()) >= 0
    assert int(experts.max()) < num_experts
    assert (experts.sort(dim=1).values.diff(dim=1) > 0).all()
    assert weights[6].isnan().all()
    assert_routes_as_reference(logits[[0, 1, 2, 3, 7, 8]], top_k, gate)


@pytest.mark.parametrize(("tokens", "num_experts"), [(8192, 8), (8192, 16), (4100, 64)])
def test_as_many_tokens_as_there_may_be(tokens, num_experts, device):
    assert_routes_as_reference(rounded_logits(tokens, num_experts).to(device), 6, Gating())


@pytest.mark.parametrize("gating", sorted(set(GATINGS_TO_TEST) - GROUPED))
def test_an_expert_that_nobody_may_take_changes_nothing(gating, device):
    """Though with it the lanes are twice as many."""
    gate = GATINGS_TO_TEST[gating]
    logits = rounded_logits(9, MANY).to(device)
    more = torch.nn.functional.pad(logits, (0, 1), value=float("-inf"))
    bias = correction_bias(MANY, gate, device)
    more_bias = None if bias is None else torch.nn.functional.pad(bias, (0, 1), value=float("-inf"))
    experts, weights = top_k_of(logits, 16, gate, bias)
    more_experts, more_weights = top_k_of(more, 16, gate, more_bias)
    assert torch.equal(experts, more_experts)
    # The sums run in another order in a program of another shape.
    torch.testing.assert_close(weights, more_weights, rtol=2e-6, atol=0)


@pytest.mark.parametrize("gating", ["softmax", "deepseek_v3"])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_the_logits_are_added_up(parts, gating, device):
    """Halves of whole numbers, whose sums are exact in any order, so that not one logit may differ."""
    gate = GATINGS_TO_TEST[gating]
    generator = torch.Generator().manual_seed(parts)
    pieces = torch.randint(-6, 7, (parts, 11, 32), generator=generator).to(device) / 2.0
    bias = correction_bias(32, gate, device)
    experts, weights = launch_top_k(pieces, 6, gate, bias)
    whole_experts, whole_weights = top_k_of(pieces.sum(0), 6, gate, bias)
    assert torch.equal(experts, whole_experts)
    torch.testing.assert_close(weights, whole_weights, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_experts", [12, MANY + 12])
@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid"])
def test_ties_go_to_the_lower_expert(gating, num_experts, device):
    logits = torch.zeros(4, num_experts, device=device)
    logits[1, [3, 7, 9]] = 2.0
    logits[2, ::2] = -0.0  # equal to 0.0, whatever its sign bit says
    logits[3, 1] = -1.0
    assert_routes_as_reference(logits.repeat(5, 1), 5, GATINGS[gating])


def test_scores_that_round_to_the_same_do_not_tie_where_logits_do_not(device):
    """Softmax scores of far lower logits are all 0; the higher logit is still the better one."""
    logits = torch.full((2, 8), -300.0, device=device)
    logits[:, 2] = 0.0
    logits[0, [7, 5, 6]] = torch.tensor([-200.0, -210.0, -220.0], device=device)
    assert_routes_as_reference(logits, 4, Gating())
    assert top_k_of(logits, 4, Gating())[0][0].tolist() == [2, 7, 5, 6]


@pytest.mark.parametrize("num_experts", [16, 2 * MANY])
def test_a_group_is_as_good_as_its_two_best(num_experts, device):
    """One group has the best expert alone, another two good ones, which together are better."""
    members = num_experts // 4
    logits = torch.full((3, num_experts), -5.0, device=device)
    logits[:, 0] = 3.0
    logits[:, [2 * members + 1, 2 * members + 2]] = 2.0
    gating = Gating("sigmoid", groups=4, top_groups=1)
    assert_routes_as_reference(logits, 2, gating)
    assert top_k_of(logits, 2, gating)[0].tolist() == [[2 * members + 1, 2 * members + 2]] * 3


@pytest.mark.parametrize("top_k", [4, 10])
def test_softmax_is_over_all_groups_whatever_is_allowed(top_k, device):
    """The best expert stands in a group that is not; and one of that group fills up where the allowed have too few."""
    logits = rounded_logits(5, 2 * MANY).to(device)
    members = MANY // 2
    logits[:, :members] = float("-inf")
    logits[:, 0] = 90.0
    logits[:, members + 4 : 2 * members] = float("-inf")
    logits[:, members : members + 4] = 60.0 + logits[:, members : members + 4] / 64
    logits[:, 2 * members :] = float("-inf")
    gating = Gating("softmax", True, groups=4, top_groups=1)
    assert_routes_as_reference(logits, top_k, gating)


@pytest.mark.parametrize("num_experts", [MANY, MANY + 60, 2 * MANY, 4 * MANY])
@pytest.mark.parametrize("gating", ["softmax_renorm", "sigmoid"])
def test_few_different_logits_tie_as_in_the_reference(gating, num_experts, device):
    """Neighbours that are equal are put in order too, by their place."""
    values = torch.tensor([float("-inf"), -0.0, 0.0, 1.0], device=device)
    generator = torch.Generator().manual_seed(num_experts)
    drawn = torch.randint(0, 4, (24, num_experts), generator=generator).to(device)
    assert_routes_as_reference(values[drawn], 8, GATINGS[gating])


def test_equal_groups_go_to_the_lower_group(device):
    gating = Gating("sigmoid", groups=4, top_groups=2)
    logits = torch.zeros(2, 16, device=device)
    logits[1, 12:] = 1.0
    assert top_k_of(logits, 6, gating)[0].tolist() == [[0, 1, 2, 3, 4, 5], [12, 13, 14, 15, 0, 1]]


@pytest.mark.parametrize("num_experts", [16, 2 * MANY])
@pytest.mark.parametrize("gating", ["softmax_renorm", "sigmoid", "softmax_with_bias", "kimi_k2"])
def test_logits_of_minus_infinity_come_last(gating, num_experts, device):
    """So a layer can forbid experts. Where too few others are left, the lowest forbidden ones fill up."""
    logits = rounded_logits(6, num_experts).to(device)
    logits[:, ::2] = float("-inf")
    logits[3, 7:] = float("-inf")
    logits[4, :5] = float("-inf")
    assert_routes_as_reference(logits, 6, GATINGS_TO_TEST[gating])
    if gating == "sigmoid":
        experts, weights = top_k_of(logits, 6, GATINGS[gating])
        assert set(experts[3, :3].tolist()) == {1, 3, 5}
        assert experts[3, 3:].tolist() == [0, 2, 4]
        assert weights[3].gt(0).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("num_experts", [32, 2 * MANY])
@pytest.mark.parametrize("gating", sorted(GROUPED))
def test_logits_of_minus_infinity_in_groups(gating, num_experts, device):
    """Each group keeps two that may be chosen, as its score needs."""
    gate = GATINGS_TO_TEST[gating]
    logits = rounded_logits(6, num_experts).to(device)
    logits[:, ::2] = float("-inf")
    assert_routes_as_reference(logits, 2 * gate.top_groups, gate)


@pytest.mark.parametrize("gating", GATINGS_TO_TEST)
@pytest.mark.parametrize("num_experts", [32, 60, 2 * MANY])
@pytest.mark.parametrize("tokens", [4, 11])
def test_logits_that_are_no_numbers_choose_different_experts(tokens, num_experts, gating, device):
    gate = GATINGS_TO_TEST[gating]
    num_experts += -num_experts % gate.groups
    logits = rounded_logits(tokens, num_experts).to(device)
    logits[0] = float("nan")
    logits[1, 5] = float("nan")
    logits[2, num_experts - 1] = float("inf")
    logits[3] = float("-inf")
    bias = correction_bias(num_experts, gate, device)
    experts, weights = top_k_of(logits, 6, gate, bias)
    experts = experts.long()
    if gate.scoring == "softmax":
        assert weights[:4].isnan().all()
    assert int(experts.min()) >= 0
    assert int(experts.max()) < num_experts
    assert (experts.sort(dim=1).values.diff(dim=1) > 0).all()
    assert torch.equal(experts[4:], route(logits[4:], 6, gate, bias)[1])


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
        (int(flat[slots[row]]), int(row)) for expert, first, height in zip(experts, rows, heights)
        for row in range(int(first), int(first + height)) if int(flat[slots[row]]) == expert
    ]  # fmt: skip
    assert [row for _, row in covered] == list(range(len(slots)))
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
