"""What of `fast` only a GPU shows: graphs that follow the routing, memory that is used again, overlapping launches."""

import pytest
import torch
from moe_cases import assert_accurate, make_layer

from tritonmoe_bench.kernels import pdl
from tritonmoe_bench.kernels.fast import FEW_TOKENS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="about CUDA graphs and launches"),
]

SHAPE = {"experts": 16, "top_k": 4, "hidden": 256, "ffn": 192}
TOKENS = [1, FEW_TOKENS, FEW_TOKENS + 1, 32, 33, 200]
"""Own logits or PyTorch's, one program or three launches, tiles for few, some and many rows."""


@pytest.fixture(autouse=True)
def poison():
    """Not here: kernels that fill memory would stand between the launches that are to overlap."""


def captured(run):
    """A CUDA graph of `run()`, whose kernels are compiled before, and what `run` returned."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_graph_follows_inputs_and_routing(tokens, dtype, device):
    layer = make_layer(device, tokens=tokens, **SHAPE, dtype=dtype)
    graph, y = captured(layer.fast)
    static = layer.x
    one_expert = torch.zeros(tokens, SHAPE["experts"])
    one_expert[:, [3, 7, 11, 15]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    for routing in ({"skew": 0.0}, {"skew": 2.0}, {"logits": one_expert}, {"skew": 1.2}):
        other = make_layer(device, tokens=tokens, **SHAPE, dtype=dtype, **routing)
        static.copy_(other.x)
        graph.replay()
        replayed = y.clone()
        assert torch.equal(replayed, other.fast())
        assert_accurate(replayed, other.reference(torch.float32), other.reference(static.dtype), 1.5)
        graph.replay()
        assert torch.equal(y, replayed)


@pytest.mark.parametrize("tokens", TOKENS)
def test_forwards_chained_in_one_graph(tokens, dtype, device):
    """Each forward takes up the memory of the intermediates before it, while the kernels before may still drain."""
    layers = [make_layer(device, tokens=tokens, **SHAPE, dtype=dtype, skew=skew) for skew in (0.0, 2.0, 1.2, 0.0)]
    inputs = [layer.x for layer in layers]
    expected = [layer.fast() for layer in layers] * 3

    def chain():
        outputs = []
        for layer, x in list(zip(layers, inputs)) * 3:
            # Only a NaN of the forward before changes the sum, and it must wait for it.
            layer.x = x + 0 * outputs[-1] if outputs else x
            outputs.append(layer.fast())
        return outputs

    graph, outputs = captured(chain)
    for _ in range(5):
        graph.replay()
    for output, alone in zip(outputs, expected):
        assert torch.equal(output, alone)


@pytest.mark.parametrize("tokens", TOKENS)
def test_overlapping_launches_give_the_same_bits(tokens, dtype, device, monkeypatch):
    if "launch_pdl" not in pdl.launch_options(torch.device("cuda", 0)):
        pytest.skip("launches overlap from compute capability 9 on")
    layer = make_layer(device, tokens=tokens, **SHAPE, dtype=dtype, skew=1.2)
    overlapping = [layer.fast() for _ in range(20)]
    monkeypatch.setattr(pdl, "_supported", lambda device: False)
    alone = layer.fast()
    for y in overlapping:
        assert torch.equal(y, alone)
