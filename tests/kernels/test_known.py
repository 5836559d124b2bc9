"""A call is checked once, and again as soon as anything is other that a check looks at."""

from dataclasses import replace

import pytest
import torch
from experts_cases import make_routed
from fast_cases import SMALL_FEW, make_tiles
from moe_cases import make_layer

from tritonmoe_bench.kernels.fast import forward, known
from tritonmoe_bench.kernels.fast.layer import fast_experts, fast_moe
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.gating import Gating

SHAPE = {"tokens": 3, "experts": 6, "top_k": 2, "hidden": 64, "ffn": 48}


@pytest.fixture
def checked(monkeypatch):
    """One entry for every call that was checked."""
    calls, check = [], forward.check_arguments

    def note(*arguments):
        calls.append(arguments)
        check(*arguments)

    monkeypatch.setattr(forward, "check_arguments", note)
    monkeypatch.setattr(known, "_current_device", lambda x: 0)
    monkeypatch.setattr(known, "_tiles", {})
    return calls


def test_once(checked, device):
    layer = make_layer(device, **SHAPE)
    y = layer.assert_fast_right()
    for _ in range(3):
        assert torch.equal(layer.fast(), y)
    layer.x = layer.x.clone()
    assert torch.equal(layer.fast(), y)
    assert len(checked) == 1


def test_a_layer_with_its_own_weights_or_values_is_the_same_call(checked, device):
    one, other = make_layer(device, **SHAPE), make_layer(device, **SHAPE, skew=1.0)
    one.assert_fast_right()
    other.assert_fast_right()
    assert len(checked) == 1


@pytest.mark.parametrize(
    "options",
    [{"invariant": True}, {"tiles": SMALL_FEW}, {"tiles": make_tiles(16)}, {"weights_on_input": True},
     {"activation": "gelu_tanh"}, {"gating": Gating(scale=2.0)}, {"activations": "a16"}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_an_option_makes_another(options, checked, device):
    layer = make_layer(device, **SHAPE)
    router, gate_up, down, top_k, gating = layer.parameters
    plain = {"gating": gating}
    for each in (plain, plain | options, plain, plain | options):
        fast_moe(layer.x, router, gate_up, down, top_k, **each)
    assert len(checked) == 2


def test_tensors_that_differ_make_another(checked, device, monkeypatch):
    layer = make_layer(device, **SHAPE)
    router, gate_up, down, top_k, gating = layer.parameters
    bias = torch.zeros(6, device=device)
    wide = torch.zeros(3, 80, dtype=layer.x.dtype, device=device)[:, :64].copy_(layer.x)
    calls = [
        (layer.x, router, {}), (layer.x[:2], router, {}), (wide, router, {}), (layer.x, router.float(), {}),
        (layer.x, router, {"router_bias": bias}), (layer.x, router, {"router_bias": bias.half()}),
        (layer.x, router, {"out": torch.empty_like(layer.x)}), (layer.x[None], router, {}),
    ]  # fmt: skip
    for _ in range(2):
        for x, weight, more in calls:
            fast_moe(x, weight, gate_up, down, top_k, gating, **more)
    assert len(checked) == len(calls)
    monkeypatch.setattr(known, "_current_device", lambda x: 1)
    fast_moe(layer.x, router, gate_up, down, top_k, gating)
    assert len(checked) == len(calls) + 1


def test_routing_done_outside(checked, device):
    routed = make_routed(device, **SHAPE)
    right = (routed.x, routed.gate_up, routed.down, routed.ids, routed.weights)
    for _ in range(2):
        fast_experts(*right)
        fast_experts(*right[:3], routed.ids.to(torch.int32), routed.weights)
        fast_experts(*right[:3], routed.ids, routed.weights.half())
        fast_experts(*right, expert_map=torch.arange(6, dtype=torch.int32, device=device))
    assert len(checked) == 4
    with pytest.raises(ValueError, match="topk_weights must have shape"):
        fast_experts(*right[:4], routed.weights[:, :1])
    with pytest.raises(TypeError, match="topk_ids must be"):
        fast_experts(*right[:3], routed.ids.float(), routed.weights)


def test_packed_weights(checked, device):
    layer = make_layer(device, **SHAPE | {"hidden": 128, "ffn": 128}, dtype="fp16")
    router, gate_up, down, top_k, gating = layer.parameters
    packed = Fp8Block.pack(gate_up), Fp8Block.pack(down)
    for _ in range(2):
        fast_moe(layer.x, router, *packed, top_k, gating)
        fast_moe(layer.x, router, gate_up, down, top_k, gating)
    assert len(checked) == 2
    with pytest.raises(TypeError, match="down must be packed"):
        fast_moe(layer.x, router, packed[0], down, top_k, gating)
    with pytest.raises(ValueError, match="gate_up must have shape"):
        fast_moe(layer.x, router, replace(packed[0], values=packed[0].values[:5]), packed[1], top_k, gating)


def test_what_is_kept_has_a_bound(checked, device, monkeypatch):
    monkeypatch.setattr(known, "MOST", 2)
    layer = make_layer(device, **SHAPE)
    x = layer.x
    for tokens in (1, 2, 3, 1, 2, 3):
        layer.x = x[:tokens]
        layer.fast(tiles=SMALL_FEW)
        assert len(known._tiles) <= 2


def test_not_on_a_cpu():
    assert known._current_device(torch.zeros(1)) is None
