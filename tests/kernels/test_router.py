"""Scoring and top-k against the reference, with ties, infinities and every expert count class."""

import pytest
import torch
from moe_cases import make_layer, rounded_logits

from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.kernels.gating import Gating
from tritonmoe_bench.kernels.paper import router as paper_router
from tritonmoe_bench.kernels.paper.router import launch_router, launch_score_topk

GATINGS = {
    "softmax": Gating(),
    "softmax_renorm": Gating(renormalize=True),
    "sigmoid": Gating("sigmoid"),
    "sigmoid_renorm_scaled": Gating("sigmoid", renormalize=True, scale=2.5),
}
SHAPES = [
    (1, 1, 1),
    (3, 5, 5),
    (17, 60, 4),
    (300, 8, 2),
    (2, 512, 16),
    (33, 384, 8),
    (64, 16, 16),
    (3, 896, 22),
    (2, 1024, 32),
]


def assert_routes_as_reference(logits, top_k, gating):
    weights, experts = launch_score_topk(logits, top_k, gating)
    expected_weights, expected_experts = route(logits, top_k, gating)
    assert weights.dtype == torch.float32
    assert experts.dtype == torch.int32
    assert torch.equal(experts.long(), expected_experts)
    # A GPU's exp and division are good to a few units in the last place, and exp multiplies the error of its argument.
    torch.testing.assert_close(weights, expected_weights, rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape, gating, device):
    tokens, experts, top_k = shape
    assert_routes_as_reference(rounded_logits(tokens, experts).to(device), top_k, GATINGS[gating])


@pytest.mark.parametrize("dtype_of_logits", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_of_logits(dtype_of_logits, device):
    logits = rounded_logits(40, 24).to(device=device, dtype=dtype_of_logits)
    for gating in GATINGS.values():
        assert_routes_as_reference(logits, 3, gating)


@pytest.mark.parametrize("gating", GATINGS)
def test_ties_go_to_the_lower_expert(gating, device):
    logits = torch.zeros(4, 12, device=device)
    logits[1, [3, 7, 9]] = 2.0
    logits[2, ::2] = -0.0  # equal to 0.0, whatever its sign bit says
    logits[3, 11] = -1.0
    assert_routes_as_reference(logits, 5, GATINGS[gating])


def test_logits_of_minus_infinity_are_chosen_last_and_each_once(device):
    logits = torch.full((2, 6), float("-inf"), device=device)
    logits[:, 4] = 1.0
    logits[1, 2] = 3.0
    weights, experts = launch_score_topk(logits, 4, Gating())
    assert experts.tolist() == [[4, 0, 1, 2], [2, 4, 0, 1]]
    assert weights[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert_routes_as_reference(logits, 4, Gating())


def test_saturated_sigmoid_scores_tie(device):
    logits = torch.tensor([[-200.0, 90.0, 80.0, 95.0, -300.0, 0.0]], device=device)
    assert_routes_as_reference(logits, 6, Gating("sigmoid"))
    assert launch_score_topk(logits, 3, Gating("sigmoid"))[1].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_nan_logit_shows_in_the_weights_and_breaks_no_index(scoring, device):
    logits = rounded_logits(3, 10).to(device)
    logits[1, 6] = float("nan")
    weights, experts = launch_score_topk(logits, 10, Gating(scoring))
    assert weights[1].isnan().any()
    assert not weights[[0, 2]].isnan().any()
    assert experts.sort(dim=1).values.tolist() == [list(range(10))] * 3


def test_rows_may_lie_apart(device):
    wide = rounded_logits(9, 32).to(device)
    assert_routes_as_reference(wide[:, :20], 4, Gating())


def test_a_first_call_in_a_capture_is_one_clear_error(device, monkeypatch):
    monkeypatch.setattr(paper_router, "may_call", lambda device: False)
    layer = make_layer(device, tokens=5, experts=4, top_k=2, hidden=32, ffn=16)
    with pytest.raises(RuntimeError, match="in the capture of a CUDA graph: call paper_moe once before it"):
        layer.forward(schedule="gpu")


@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid", "sigmoid_renorm"])
def test_router_from_activations(gating, dtype, device):
    layer = make_layer(device, tokens=50, experts=20, top_k=6, hidden=72, ffn=8, dtype=dtype, gating=gating, skew=1.2)
    weights, experts = launch_router(layer.x, layer.weights.router(), 6, layer.case.gate)
    expected_weights, expected_experts = route(layer.x.float() @ layer.weights.router().float().T, 6, layer.case.gate)
    assert torch.equal(experts.long(), expected_experts)
    torch.testing.assert_close(weights, expected_weights, rtol=5e-6, atol=1e-9)
