"""Activations, biases and routing weights on the input, on every path of `fast`."""

import math
from itertools import cycle

import pytest
import torch
from experts_cases import activated, draw_ids, make_routed
from fast_cases import SMALL_FEW, SMALL_JOINED, make_tiles
from moe_cases import assert_accurate, random

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import quantize_fp8, relative_error
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import ACTIVATIONS, Activation, Gating, fast_experts, fast_moe

SHAPE = {"experts": 5, "top_k": 3, "hidden": 77, "ffn": 35}
PATHS = {"16": make_tiles(16), "160_tail": make_tiles(160, swap=True), "few": SMALL_FEW,
         "joined": SMALL_JOINED}  # fmt: skip
OPTIONS = {
    "biases": {"biases": True},
    "gpt_oss": {"activation": "gpt_oss", "biases": True, "size": 5.0},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "limit_alone": {"activation": Activation(limit=0.5), "size": 3.0},
    "weights_on_input": {"weights_on_input": True},
    "weights_on_input_and_biases": {"weights_on_input": True, "biases": True, "activation": "gpt_oss"},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "dtype"), list(zip(OPTIONS, cycle(["bf16", "fp16"]))))
def test_every_path(path, name, dtype, device):
    """For a hot expert of several tiles, and experts without a row, where the path has tiles."""
    tokens = {"few": 6, "joined": 30}.get(path, 170)
    # The joined path cannot weight the input of a token with several experts.
    shape = SHAPE | ({"top_k": 1} if path == "joined" and "input" in name else {})
    ids = draw_ids(tokens, SHAPE["experts"], shape["top_k"], hot=tokens - 5)
    make_routed(device, tokens=tokens, **shape, ids=ids, dtype=dtype, **OPTIONS[name]).assert_right(tiles=PATHS[path])


@pytest.mark.parametrize("path", ["16", "few"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_biases_of_every_type_are_added_in_float32(path, kind, device):
    routed = make_routed(device, tokens=4, **SHAPE, dtype="fp16", biases=True)
    given = {name: bias.to(kind) for name, bias in routed.options.items()}
    exact = {name: bias.float() for name, bias in given.items()}
    tiles = PATHS[path]
    assert torch.equal(routed.having(**given).forward(tiles=tiles), routed.having(**exact).forward(tiles=tiles))


@pytest.mark.parametrize("path", ["16", "few"])
def test_the_clamp_leaves_what_is_no_number(path, device):
    routed = make_routed(device, tokens=3, **SHAPE, activation="gpt_oss")
    routed.x[1] = float("nan")
    y = routed.forward(tiles=PATHS[path])
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("way", ["a16", "a8"])
@pytest.mark.parametrize("name", OPTIONS)
def test_packed_weights(way, name, device):
    if way == "a8" and device != "cpu" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs fp8 units")
    options = OPTIONS[name]
    routed = make_routed(device, tokens=20, experts=5, top_k=3, hidden=256, ffn=128, **options)
    made = Weights(Case("t", 5, 3, 256, 128, 20, quant="fp8_block"), device)
    packed = routed.but(gate_up=made.packed_gate_up(), down=made.packed_down())
    plain = packed.but(gate_up=packed.gate_up.unpack(), down=packed.down.unpack())
    exact, y = plain.reference(torch.float32), packed.forward(activations=way)
    if way == "a8":
        own, times = plain.reference(torch.float32, quantize_fp8), 1.2
    else:
        own, times = plain.reference(y.dtype), 1.5
    assert relative_error(y, exact) <= times * relative_error(own, exact)


def test_a_gpt_oss_layer(dtype, device):
    """Router with a bias, softmax over the chosen, clamped SwiGLU, biases: written out."""
    tokens, experts, top_k, hidden, ffn = 20, 8, 4, 72, 40
    routed = make_routed(
        device, tokens=tokens, experts=experts, top_k=top_k, hidden=hidden, ffn=ffn, dtype=dtype, biases=True,
        activation="gpt_oss", size=4.0,
    )  # fmt: skip
    router = random(experts, hidden, dtype=dtype, device=device, seed=9)
    bias = random(experts, dtype=dtype, device=device, seed=10).float() * 8
    logits = routed.x.double() @ router.double().T + bias
    chosen, ids = logits.topk(top_k)
    exact = routed.but(ids=ids, weights=chosen.softmax(1).float())
    assert (ids.sort(1).values != (logits - bias).topk(top_k).indices.sort(1).values).any()
    for kind in (torch.float32, routed.x.dtype):
        y = fast_moe(
            routed.x, router, routed.gate_up, routed.down, top_k, Gating(renormalize=True), router_bias=bias.to(kind),
            **routed.options,
        )  # fmt: skip
        if kind == torch.float32:
            assert_accurate(y, exact.reference(torch.float32), exact.reference(y.dtype), 1.5)


def test_names_of_activations():
    assert ACTIVATIONS["gpt_oss"] == Activation(alpha=1.702, shift=1.0, limit=7.0)
    assert Activation.of("silu") == Activation() == Activation.of(Activation())
    gate, up = torch.tensor([9.0, -9.0, 1.0]), torch.tensor([9.0, -9.0, 0.5])
    terms = ((8, 7), (-6, -9), (1.5, 1))  # up + 1 and gate, cut
    expected = [up * gate / (1 + math.exp(-1.702 * gate)) for up, gate in terms]
    assert activated(gate, up, ACTIVATIONS["gpt_oss"]).tolist() == pytest.approx(expected, rel=1e-4)


WRONG = {
    "function": ({"function": "relu"}, "function must be one of silu, gelu_tanh, got 'relu'"),
    "limit": ({"limit": 0.0}, "limit must be positive and finite, or None, got 0.0"),
    "alpha": ({"alpha": float("nan")}, "alpha and shift must be finite"),
    "alpha_of_gelu": ({"function": "gelu_tanh", "alpha": 2.0}, "alpha belongs to silu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_activation_that_cannot_be(name):
    fields, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Activation(**fields)


def test_an_activation_that_is_none(device):
    routed = make_routed(device, tokens=2, **SHAPE)
    with pytest.raises(ValueError, match="activation='relu': allowed are silu, gelu_tanh, gpt_oss, or an Activation"):
        routed.forward(activation="relu")
    with pytest.raises(TypeError, match="activation must be an Activation or its name, got float"):
        fast_experts(routed.x, routed.gate_up, routed.down, routed.ids, routed.weights, activation=1.0)
