"""Routing of `fast`: weights against the reference, and the invariants of order and table for any routing."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_cases import rounded_logits

from tritonmoe_bench.baselines.reference import route
from tritonmoe_bench.kernels import fast_schedule
from tritonmoe_bench.kernels.fast_schedule import SMALL_SLOTS, launch_routing
from tritonmoe_bench.kernels.gating import GATINGS, Gating
from tritonmoe_bench.kernels.schedule import max_blocks
from tritonmoe_bench.kernels.tiles import GROUP_M

GATINGS_TO_TEST = GATINGS | {
    "groups_by_bias": Gating("sigmoid", groups=4, top_groups=1, correction_bias=True),
    "groups_of_softmax": Gating("softmax", True, groups=4, top_groups=2, scale=0.5),
    "softmax_with_bias": Gating("softmax", correction_bias=True),
}
SHAPES = [(1, 16, 1), (3, 32, 4), (16, 16, 8), (17, 16, 8), (60, 64, 4), (2, 512, 8), (33, 256, 8)]
PLAIN_SHAPES = [(1, 1, 1), (3, 5, 5), (17, 60, 4), (300, 8, 2), (2, 512, 16), (33, 384, 8), (8, 16, 16)]
GROUPED = {name for name, gating in GATINGS_TO_TEST.items() if gating.groups > 1}
LINES = ("expert", "row", "rows", "first", "height")


def correction_bias(num_experts: int, device: str) -> torch.Tensor:
    return (torch.randn(num_experts, generator=torch.Generator().manual_seed(5)) * 0.1).to(device)


def slots_of(blocks) -> torch.Tensor:
    """The expert of each slot, int64 [N], as order and table say; every slot must stand there once."""
    order, table = blocks.order.cpu().long(), dict(zip(LINES, blocks.table.cpu().long()))
    assert torch.equal(order.sort().values, torch.arange(len(order)))
    experts = torch.full([len(order)], -1)
    for expert, row, rows in zip(table["expert"].tolist(), table["row"].tolist(), table["rows"].tolist()):
        experts[order[row : row + rows]] = expert
    return experts


def assert_valid(blocks, experts: torch.Tensor, num_experts: int, block_m: int) -> None:
    """Slots in expert order, in their own order in an expert; blocks that cover all rows once; the rest zero."""
    slots = experts.cpu().flatten().long()
    counts = torch.bincount(slots, minlength=num_experts)
    offsets = (counts.cumsum(0) - counts).tolist()
    assert torch.equal(blocks.order.cpu().long(), slots.argsort(stable=True))
    expected = [
        (expert, offsets[expert] + start, min(count - start, block_m))
        for expert, count in enumerate(counts.tolist())
        for start in range(0, count, block_m)
    ]
    columns = blocks.table.shape[1]
    assert columns == max_blocks(len(slots), num_experts, block_m)
    assert len(expected) <= columns
    table = blocks.table.cpu()
    assert [tuple(column) for column in table[:3, : len(expected)].T.tolist()] == expected
    assert int(table[2].sum()) == len(slots)
    assert not table[[2, 4], len(expected) :].any()
    assert_programs_share_out_the_tiles(table, [expert for expert, _, _ in expected])


def assert_programs_share_out_the_tiles(table: torch.Tensor, block_experts: list[int], num_columns: int = 3) -> None:
    """As the GEMMs read the table: each (row block, column) has one program, and blocks of a group one expert."""
    program = torch.arange(table.shape[1] * num_columns)
    first, height = table[3:, program // num_columns].long()
    position = program - first * num_columns
    position, first, height = position[height > 0], first[height > 0], height[height > 0]
    taken = torch.stack([first + position % height, position // height], dim=1)
    used = len(block_experts)
    assert torch.equal(taken.unique(dim=0), torch.cartesian_prod(torch.arange(used), torch.arange(num_columns)))
    assert len(taken) == used * num_columns
    for start, group in zip(table[3, :used].tolist(), table[4, :used].tolist()):
        assert 1 <= group <= GROUP_M
        assert len(set(block_experts[start : start + group])) == 1


@st.composite
def routings(draw):
    """(experts int64 [tokens, top_k], num_experts, block_m), from one token to many on a few of many experts."""
    num_experts = draw(st.sampled_from([1, 2, 5, 8, 60, 64, 130]))
    popular = draw(st.integers(1, num_experts))
    top_k = draw(st.integers(1, min(popular, 16)))
    tokens = draw(st.sampled_from([1, 2, 7, 8, 17, 64, 65, 128, 129, 300, 700]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    chosen = torch.randperm(num_experts, generator=generator)[:popular]
    ranks = torch.rand(tokens, popular, generator=generator).argsort(dim=1)[:, :top_k]
    return chosen[ranks], num_experts, draw(st.sampled_from([16, 64, 128]))


def logits_that_choose(experts: torch.Tensor, num_experts: int) -> torch.Tensor:
    """float32 [tokens, num_experts] whose top-k are `experts`, in that order."""
    falling = torch.arange(experts.shape[1], 0, -1).float().expand(experts.shape)
    return torch.zeros(experts.shape[0], num_experts).scatter(1, experts, falling)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(routing=routings())
def test_order_and_table(routing, device):
    experts, num_experts, block_m = routing
    logits = logits_that_choose(experts, num_experts).to(device)
    assert_valid(launch_routing(logits, experts.shape[1], Gating(), None, block_m), experts, num_experts, block_m)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(routing=routings().filter(lambda routing: routing[0].numel() <= SMALL_SLOTS // 2))
def test_one_program_and_three_launches_agree(routing, device):
    experts, num_experts, block_m = routing
    logits = logits_that_choose(experts, num_experts).to(device)
    with pytest.MonkeyPatch.context() as patch:
        small = launch_routing(logits, experts.shape[1], Gating(renormalize=True), None, block_m)
        patch.setattr(fast_schedule, "SMALL_SLOTS", 0)
        large = launch_routing(logits, experts.shape[1], Gating(renormalize=True), None, block_m)
    # The sum that renormalises runs in another order in a program of another shape.
    torch.testing.assert_close(small.weights, large.weights, rtol=1e-6, atol=0)
    assert torch.equal(small.order, large.order)
    used = int((small.table[2] > 0).sum())
    assert torch.equal(small.table[:, :used], large.table[:, :used])
    for table in (small.table, large.table):
        assert not table[[2, 4], used:].any()


@pytest.mark.parametrize(
    ("tokens", "top_k", "num_experts"), [(8192, 2, 16), (700, 1, 1), (130, 16, 512), (1, 1, 512), (513, 8, 256)]
)
def test_large_and_small(tokens, top_k, num_experts, device):
    ranks = torch.rand(tokens, num_experts, generator=torch.Generator().manual_seed(1)).argsort(dim=1)[:, :top_k]
    logits = logits_that_choose(ranks, num_experts).to(device)
    for block_m in (16, 128):
        assert_valid(launch_routing(logits, top_k, Gating(), None, block_m), ranks, num_experts, block_m)


def assert_routes_as_reference(logits, top_k, gating):
    num_experts = logits.shape[1]
    bias = correction_bias(num_experts, logits.device) if gating.correction_bias else None
    blocks = launch_routing(logits, top_k, gating, bias, 16)
    expected_weights, expected_experts = route(logits, top_k, gating, bias)
    assert blocks.weights.dtype == torch.float32
    assert torch.equal(slots_of(blocks).view(-1, top_k), expected_experts.cpu())
    # A GPU's exp and division are good to a few units in the last place, and exp multiplies the error of its argument.
    torch.testing.assert_close(blocks.weights, expected_weights, rtol=5e-6, atol=1e-9)


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


@pytest.mark.parametrize("repeats", [1, 20])
@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid"])
def test_ties_go_to_the_lower_expert(gating, repeats, device):
    logits = torch.zeros(4, 12, device=device)
    logits[1, [3, 7, 9]] = 2.0
    logits[2, ::2] = -0.0  # equal to 0.0, whatever its sign bit says
    logits[3, 11] = -1.0
    assert_routes_as_reference(logits.repeat(repeats, 1), 5, GATINGS[gating])


def test_a_group_is_as_good_as_its_two_best(device):
    """One group has the best expert alone, another two good ones, which together are better."""
    logits = torch.full((3, 16), -5.0, device=device)
    logits[:, 0] = 3.0
    logits[:, [9, 10]] = 2.0
    gating = Gating("sigmoid", groups=4, top_groups=1)
    assert_routes_as_reference(logits, 2, gating)
    assert slots_of(launch_routing(logits, 2, gating, None, 16)).tolist() == [9, 10] * 3


@pytest.mark.parametrize("gating", GATINGS_TO_TEST)
@pytest.mark.parametrize("num_experts", [32, 60])
@pytest.mark.parametrize("tokens", [4, 70])
def test_logits_that_are_no_numbers_break_no_index(tokens, num_experts, gating, device):
    gate = GATINGS_TO_TEST[gating]
    if gate.groups > 1 and num_experts == 60:
        pytest.skip("expert groups need powers of two")
    logits = rounded_logits(tokens, num_experts).to(device)
    logits[0] = float("nan")
    logits[1, 5] = float("nan")
    logits[3, :-1] = float("-inf")
    logits[2, num_experts - 1] = float("inf")
    bias = correction_bias(num_experts, device) if gate.correction_bias else None
    experts = slots_of(launch_routing(logits, 6, gate, bias, 16)).view(tokens, 6)
    assert int(experts.min()) >= 0
    assert int(experts.max()) < num_experts
    sound = torch.arange(4, tokens)
    expected = route(logits[sound], 6, gate, bias)[1].cpu()
    assert torch.equal(experts[sound], expected)
