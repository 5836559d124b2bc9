"""invariant=True: a token's result is the same bits alone and in any batch, whoever else is there."""

import pytest
import torch
from experts_cases import make_routed
from fast_cases import SMALL_FEW, make_tiles
from moe_cases import make_layer

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import fast_moe

ON_GPU = torch.cuda.is_available()
BATCHES = [2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 64, 100, 127, 128, 129, 200, 256, 257, 400, 511, 512]
"""Both sides of every choice that depends on the number of tokens."""
SOME = [2, 5, 33, 130]
LAYERS = {
    "few_experts": {"experts": 4, "top_k": 2, "hidden": 96, "ffn": 72},
    "many_experts": {"experts": 64, "top_k": 6, "hidden": 160, "ffn": 48},
}
ON_A_GPU = {
    "mixtral_half": {"experts": 8, "top_k": 2, "hidden": 4096, "ffn": 7168},
    "qwen3_30b_a3b": {"experts": 128, "top_k": 8, "hidden": 2048, "ffn": 768},
    "odd": {"experts": 16, "top_k": 4, "hidden": 2880, "ffn": 1440},
}
CASES = (LAYERS | ON_A_GPU) if ON_GPU else LAYERS
SLOWEST = ("many_experts", 0.0)
"""What the interpreter does not run: skewed, the same layer has every kind of block."""


def alone(run, x) -> list[torch.Tensor]:
    """Some tokens of x, each by itself, with its place in x."""
    places = range(len(x)) if ON_GPU else [0, 1, len(x) // 2, len(x) - 1]
    return [(place, run(x[place : place + 1])[0]) for place in places]


def assert_invariant(run, x) -> None:
    """Batches from both ends of x, and tokens of x in another order, against each token alone."""
    singles = alone(run, x)
    for size in BATCHES if ON_GPU else SOME:
        for first in (0, len(x) - size):
            y = run(x[first : first + size])
            for place, single in singles:
                if first <= place < first + size:
                    assert torch.equal(y[place - first], single), (size, first, place)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).to(x.device)
    y = torch.empty_like(x)
    y[order] = run(x[order])
    for place, single in singles:
        assert torch.equal(y[place], single), place


@pytest.mark.parametrize(
    ("name", "skew"), [(name, skew) for name in CASES for skew in (0.0, 1.2) if ON_GPU or (name, skew) != SLOWEST]
)
def test_every_token_alone_and_in_batches(name, skew, device):
    tokens = 512 if ON_GPU else 130
    layer = make_layer(device, tokens=tokens, **CASES[name], skew=skew)
    if name in LAYERS:
        layer.assert_fast_right(invariant=True)
    parameters = layer.parameters
    assert_invariant(lambda x: fast_moe(x, *parameters, invariant=True), layer.x)


@pytest.mark.parametrize(("gating", "dtype"), [("sigmoid_renorm", "fp16"), ("deepseek_v3", "bf16")])
def test_gatings(gating, dtype, device):
    shape = {"experts": 16, "top_k": 4, "hidden": 64, "ffn": 32}
    layer = make_layer(device, tokens=512 if ON_GPU else 130, **shape, dtype=dtype, gating=gating)
    parameters, bias = layer.parameters, layer.weights.correction_bias()
    assert_invariant(lambda x: fast_moe(x, *parameters, correction_bias=bias, invariant=True), layer.x)


@pytest.mark.parametrize("way", ["a16", "a8"])
def test_packed_weights(way, device):
    if way == "a8" and ON_GPU and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs fp8 units")
    case = Case("t", 8, 2, 256, 128, 512 if ON_GPU else 130, skew=1.2, quant="fp8_block")
    made = Weights(case, device)
    weights = made.router(), made.packed_gate_up(), made.packed_down()
    x = activations(case, draw_routing(case), device)
    assert_invariant(lambda rows: fast_moe(rows, *weights, 2, activations=way, invariant=True), x)


def test_routing_done_outside(device):
    """With ids of which some are of no expert here."""
    routed = make_routed(device, tokens=140, experts=8, top_k=3, hidden=96, ffn=48, biases=True, activation="gpt_oss")
    routed = routed.but(ids=torch.where(routed.ids > 5, -1, routed.ids)).having(invariant=True)
    y = routed.assert_right()
    for place in (0, 50, 139):
        part = slice(place, place + 1)
        single = routed.but(x=routed.x[part], ids=routed.ids[part], weights=routed.weights[part])
        assert torch.equal(single.forward()[0], y[place])


@pytest.mark.parametrize("tiles", [make_tiles(64), SMALL_FEW], ids=["dynamic", "few"])
def test_tiles_that_would_break_it_are_refused(tiles, device):
    layer = make_layer(device, tokens=2, **LAYERS["few_experts"])
    with pytest.raises(ValueError, match="invariant=True takes one tile for all blocks"):
        layer.fast(invariant=True, tiles=tiles)
    layer.assert_fast_right(invariant=True, tiles=make_tiles(64, dynamic=False))
