"""The one reference, against the definition written out slot by slot."""

import pytest
import torch

from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error, route
from tritonmoe_bench.kernels.gating import GATINGS, Gating


def test_forward_is_the_weighted_sum_over_the_chosen_experts():
    torch.manual_seed(0)
    x, router = torch.randn(5, 12), torch.randn(6, 12)
    parts = [(torch.randn(7, 12), torch.randn(7, 12), torch.randn(12, 7)) for _ in range(6)]
    gating = Gating(renormalize=True)
    y = moe_forward(x, router, parts.__getitem__, 3, gating)
    weights, experts = route(x @ router.T, 3, gating)
    for token in range(5):
        expected = torch.zeros(12)
        for weight, index in zip(weights[token], experts[token].tolist()):
            gate, up, down = parts[index]
            hidden = gate @ x[token]
            expected += weight * (down @ (hidden * torch.sigmoid(hidden) * (up @ x[token])))
        assert relative_error(y[token], expected) < 1e-5


def test_ties_go_to_the_lower_index_and_weights_follow_the_gating():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    weights, experts = route(logits, 2, Gating())
    assert experts.tolist() == [[1, 2]]
    assert torch.allclose(weights, torch.softmax(logits, -1)[:, 1:3])
    weights, _ = route(logits, 2, Gating(renormalize=True, scale=2.5))
    assert weights.sum() == pytest.approx(2.5)
    weights, _ = route(logits, 2, Gating("sigmoid"))
    assert torch.allclose(weights, torch.sigmoid(logits)[:, 1:3])


def test_groups_limit_the_choice_and_the_bias_changes_the_choice_alone():
    gating = Gating("sigmoid", groups=2, top_groups=1, correction_bias=True)
    logits = torch.tensor([[4.0, -4.0, -4.0, 1.0, 1.0, 1.0]])
    weights, experts = route(logits, 2, gating, torch.zeros(6))
    assert experts.tolist() == [[3, 4]]
    bias = torch.tensor([5.0, 0, 0, 0, 0, 0])
    weights, experts = route(logits, 2, gating, bias)
    assert experts[0, 0] == 0
    assert weights[0, 0] == torch.sigmoid(torch.tensor(4.0))
    with pytest.raises(ValueError, match="correction_bias"):
        route(logits, 2, gating)


def test_groups_that_tie_go_to_the_lower_one():
    gating = Gating("sigmoid", groups=8, top_groups=2)
    for _ in range(20):
        logits = torch.randint(0, 2, (1, 64)).float()
        logits[0, ::8] = logits[0, 1::8] = 1.0
        assert route(logits, 2, gating)[1].max() < 16


def test_an_error_is_relative_and_nan_does_not_pass():
    one = torch.ones(4)
    assert relative_error(one * 1.01, one) == pytest.approx(0.01, rel=1e-3)
    assert not relative_error(one * float("nan"), one) < 1
    assert not relative_error(one / 0, one) < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring": "relu"}, "softmax, sigmoid"),
        ({"groups": 2, "top_groups": 3}, "1..groups"),
        ({"scale": 0}, "positive"),
    ],
)
def test_a_gating_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Gating(**fields)


def test_every_named_gating_is_distinct():
    assert len(set(GATINGS.values())) == len(GATINGS)
