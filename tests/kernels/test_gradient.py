"""No gradient is lost without a word: a backward pass through a forward of ours raises, eager and compiled."""

import pytest
import torch
from fast_cases import make_tiles
from moe_cases import make_layer

from tritonmoe_bench.kernels import fast_moe, paper_moe

SHAPE = {"tokens": 5, "experts": 4, "top_k": 2, "hidden": 32, "ffn": 16}
MOES = {
    "fast": fast_moe,
    "fast_with_tiles": lambda *layer: fast_moe(*layer, tiles=make_tiles(16)),
    "paper": paper_moe,
    "compiled": torch.compile(fast_moe, fullgraph=True, backend="aot_eager"),
}
NO_GRADIENT = r"compute no gradients: call them under torch.no_grad\(\) or torch.inference_mode\(\)"


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def layer(device):
    made = make_layer(device, **SHAPE)
    return [made.x, *made.parameters[:4]]


@pytest.mark.parametrize("name", MOES)
@pytest.mark.parametrize("which", range(4), ids=["x", "router_weight", "gate_up", "down"])
def test_a_backward_pass_raises_whatever_needs_the_gradient(name, which, layer):
    """A residual alone would hand its gradient on, and the layer's own would be missing."""
    expected = MOES[name](*layer)
    assert not expected.requires_grad
    layer[which] = layer[which].clone().requires_grad_()
    y = MOES[name](*layer)
    assert torch.equal(y, expected)
    assert y.requires_grad
    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        (layer[0] + y).sum().backward()


@pytest.mark.parametrize("name", MOES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_is_not_touched(name, mode, layer):
    layer[2] = torch.nn.Parameter(layer[2])
    with mode():
        assert not MOES[name](*layer).requires_grad
    assert not MOES[name](layer[0], layer[1], layer[2].detach(), *layer[3:]).requires_grad


@pytest.mark.parametrize("name", MOES)
def test_a_model_whose_weights_were_trained_runs_with_gradients_switched_on(name, layer):
    """And may add to the output in place."""
    weights = [torch.nn.Parameter(tensor) for tensor in layer[1:4]]
    y = MOES[name](layer[0], *weights, layer[4])
    y += layer[0]
    assert torch.equal(y, MOES[name](*layer) + layer[0])
