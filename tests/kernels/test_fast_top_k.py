"""Top-k of `fast`: experts and weights against the reference."""

import os
from dataclasses import replace

import pytest
import torch
from moe_cases import rounded_logits

from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.kernels.fast.routing import launch_top_k
from tritonmoe_bench.kernels.gating import GATINGS, Gating

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
