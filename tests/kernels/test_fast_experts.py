"""`fast_experts`: routing done outside, in every form that callers have it."""

from dataclasses import replace

import pytest
import torch
from experts_cases import draw_ids, make_routed
from fast_cases import SMALL_FEW, SMALL_JOINED, make_tiles
from moe_cases import make_layer

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import chunks, fast_experts
from tritonmoe_bench.kernels.fast.forward import _combine_kernel
from tritonmoe_bench.kernels.fast.logits import launch_logits
from tritonmoe_bench.kernels.fast.routing import launch_top_k
from tritonmoe_bench.kernels.fast.tile_types import FewTiles

SHAPE = {"experts": 5, "top_k": 3, "hidden": 77, "ffn": 35}
LEFT = make_tiles(64, swap=True)
AHEAD = FewTiles(replace(SMALL_FEW.gate_up, stages=3), replace(SMALL_FEW.down, stages=4))
PATHS = {"tiles": LEFT, "few": SMALL_FEW, "ahead": AHEAD, "joined": SMALL_JOINED}


def some_elsewhere(tokens: int, seed: int = 0) -> torch.Tensor:
    """Ids of `SHAPE`, a third of them below 0 or from 5 on; the third token has no expert at all."""
    ids = draw_ids(tokens, 8, 3, seed) - 1
    ids[ids == 6] = 2**31 - 1
    ids[2] = torch.tensor([-1, 5, -(2**31)])
    return ids


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ids_and_weights_of_every_type(path, ids, weights, dtype, device):
    routed = make_routed(device, tokens=7, **SHAPE, dtype=dtype)
    routed.but(ids=routed.ids.to(ids), weights=routed.weights.to(weights)).assert_right(tiles=PATHS[path])


@pytest.mark.parametrize("tokens", [1, 2, 40, 150])
def test_it_is_fast_moe_without_its_router(tokens, dtype, device):
    layer = make_layer(device, tokens=tokens, experts=8, top_k=2, hidden=72, ffn=40, dtype=dtype)
    router, gate_up, down, top_k, gating = layer.parameters
    ids, weights = launch_top_k(launch_logits(layer.x, router), top_k, gating, None)
    assert torch.equal(fast_experts(layer.x, gate_up, down, ids, weights), layer.fast())


@pytest.mark.parametrize(
    ("path", "tokens"), [("tiles", 3), ("tiles", 150), ("few", 5), ("ahead", 5), ("joined", 5), ("joined", 30)]
)
def test_a_slot_without_an_expert_here_adds_exactly_nothing(path, tokens, dtype, device):
    """Whatever its weight is, and whatever stands in buffers, which are poisoned."""
    ids = some_elsewhere(tokens)
    routed = make_routed(device, tokens=tokens, **SHAPE, dtype=dtype, ids=ids, biases=True)
    expected = routed.assert_right(tiles=PATHS[path])
    assert expected[2].tolist() == [0.0] * SHAPE["hidden"]
    nowhere = routed.local_ids() < 0
    for weight, kind in ((float("nan"), torch.int32), (float("inf"), torch.int64)):
        changed = routed.but(ids=routed.ids.to(kind), weights=torch.where(nowhere, weight, routed.weights))
        assert torch.equal(changed.forward(tiles=PATHS[path]), expected)


@pytest.mark.parametrize("path", PATHS)
def test_no_slot_has_an_expert_here(path, device):
    ids = torch.full((7, 3), -1)
    routed = make_routed(device, tokens=7, **SHAPE, ids=ids, biases=True)
    assert torch.equal(routed.forward(tiles=PATHS[path]), torch.zeros_like(routed.x))


@pytest.mark.parametrize("path", PATHS)
def test_an_expert_map(path, device):
    """Global ids, of which some are of other GPUs and some of nobody."""
    expert_map = torch.tensor([-1, 3, 0, -1, 4, 1, -1, 2, -1], dtype=torch.int32, device=device)
    ids = draw_ids(30, 12, 3) - 1  # up to 10, where 8 is the last that is known
    routed = make_routed(device, tokens=30, **SHAPE, ids=ids, expert_map=expert_map)
    y = routed.assert_right(tiles=PATHS[path])
    by_hand = routed.but(ids=routed.local_ids(), options={})
    assert torch.equal(by_hand.forward(tiles=PATHS[path]), y)


def test_the_shards_of_a_layer_add_up(device):
    whole = make_routed(device, tokens=20, experts=6, top_k=3, hidden=40, ffn=24)
    parts = []
    for first in (0, 2, 4):
        held = slice(first, first + 2)
        expert_map = torch.full((6,), -1, dtype=torch.int32, device=device)
        expert_map[held] = torch.arange(2, dtype=torch.int32, device=device)
        shard = whole.but(gate_up=whole.gate_up[held], down=whole.down[held], options={"expert_map": expert_map})
        parts.append(shard.assert_right().float())
    torch.testing.assert_close(sum(parts), whole.forward().float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("leading", [(), (1,), (6,), (2, 3), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("slots", ["flat", "shaped"])
def test_x_of_any_leading_dimensions(leading, slots, device):
    tokens = torch.Size(leading).numel()
    routed = make_routed(device, tokens=tokens, **SHAPE)
    y = routed.assert_right()
    shaped = routed.but(x=routed.x.view(*leading, -1))
    if slots == "shaped":
        shaped = shaped.but(ids=routed.ids.view(*leading, -1), weights=routed.weights.view(*leading, -1))
    assert torch.equal(shaped.forward(), y.view(*leading, -1))
    if leading:
        layer = make_layer(device, tokens=tokens, **SHAPE)
        flat = layer.fast()
        layer.x = layer.x.view(*leading, -1)
        assert torch.equal(layer.fast(), flat.view(*leading, -1))


@pytest.mark.parametrize("path", PATHS)
def test_tensors_that_are_not_contiguous(path, device):
    """x by columns, by every other token, transposed in front; ids and weights out of wider ones."""
    routed = make_routed(device, tokens=6, **SHAPE)
    y, x = routed.forward(tiles=PATHS[path]), routed.x
    apart = torch.stack([x, x * 2], 1).flatten(0, 1)[::2]
    turned = x.view(2, 3, -1).transpose(0, 1).contiguous().transpose(0, 1)
    for strided in (x.T.contiguous().T, apart, turned):
        assert not strided.is_contiguous()
        assert torch.equal(routed.but(x=strided).forward(tiles=PATHS[path]).view(y.shape), y)
    wide = [torch.cat([part, part], 1)[:, :3] for part in (routed.ids, routed.weights)]
    assert torch.equal(routed.but(ids=wide[0], weights=wide[1]).forward(tiles=PATHS[path]), y)


@pytest.mark.parametrize("path", PATHS)
def test_the_output_goes_where_it_is_asked_to(path, device):
    routed = make_routed(device, tokens=6, **SHAPE)
    y = routed.forward(tiles=PATHS[path])
    out = torch.full_like(y, float("nan"))
    assert routed.forward(out=out, tiles=PATHS[path]) is out
    assert torch.equal(out, y)
    in_place = routed.but(x=routed.x.clone())
    assert in_place.forward(out=in_place.x, tiles=PATHS[path]) is in_place.x
    assert torch.equal(in_place.x, y)


def test_no_tokens_give_no_rows(device):
    routed = make_routed(device, tokens=3, **SHAPE)
    nothing = routed.but(
        x=routed.x.view(1, 3, -1)[:, :0].expand(2, 0, -1), ids=routed.ids[:0], weights=routed.weights[:0]
    )
    assert nothing.forward().shape == (2, 0, SHAPE["hidden"])


@pytest.mark.parametrize("tokens", [7, 13, 21])
def test_more_tokens_than_the_kernels_take_at_once(tokens, device, monkeypatch):
    routed = make_routed(device, tokens=tokens, **SHAPE, ids=some_elsewhere(tokens))
    parts = [slice(start, start + 6) for start in range(0, tokens, 6)]
    rows = [routed.but(x=routed.x[part], ids=routed.ids[part], weights=routed.weights[part]) for part in parts]
    expected = torch.cat([part.forward() for part in rows])
    monkeypatch.setattr(chunks, "MAX_SLOTS", 18)
    assert torch.equal(routed.forward(), expected)
    out = torch.full_like(routed.x, float("nan"))
    assert torch.equal(routed.forward(out=out), expected)


def test_more_experts_a_token_than_are_here(device):
    """Top-6 of a layer of which two experts are here."""
    ids = draw_ids(9, 12, 6) - 5
    make_routed(device, tokens=9, experts=2, top_k=6, hidden=40, ffn=24, ids=ids).assert_right()


@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_packed_weights(tokens, device):
    ids = draw_ids(tokens, 8, 3) - 1
    routed = make_routed(device, tokens=tokens, experts=5, top_k=3, hidden=128, ffn=128, ids=ids, biases=True)
    made = Weights(Case("t", 5, 3, 128, 128, tokens, quant="fp8_block"), device)
    gate_up, down = made.packed_gate_up(), made.packed_down()
    unpacked = routed.but(gate_up=gate_up.unpack(routed.x.dtype), down=down.unpack(routed.x.dtype))
    y = routed.but(gate_up=gate_up, down=down).forward(activations="a16")
    exact = unpacked.reference(torch.float32)
    error = (y.float() - exact).norm() / exact.norm()
    own = (unpacked.reference(y.dtype).float() - exact).norm() / exact.norm()
    assert error <= 1.5 * own


@pytest.mark.parametrize("tokens", [2, 33])
def test_a_second_call_is_bitwise_the_same(tokens, device):
    routed = make_routed(device, tokens=tokens, **SHAPE, biases=True, activation="gpt_oss")
    assert torch.equal(routed.forward(), routed.forward())


@pytest.mark.parametrize("tokens", [1, 3, 60])
def test_the_host_is_never_asked(tokens, device, monkeypatch):
    def refuse(*_):
        raise AssertionError("the host was asked for what the GPU decides")

    routed = make_routed(device, tokens=tokens, **SHAPE, expert_map=torch.zeros(5, dtype=torch.int32, device=device))
    for name in ("item", "tolist", "cpu", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    routed.forward()


WRONG = {
    "ids in float": ({"ids": lambda r: r.ids.float()}, TypeError, "topk_ids must be torch.int32 or torch.int64, got"),
    "ids in a list": ({"ids": lambda r: r.ids.tolist()}, TypeError, "topk_ids must be a torch.Tensor, got list"),
    "ids of fewer tokens": (
        {"ids": lambda r: r.ids[1:]}, ValueError, r"topk_ids must have shape \[6, top_k\], got \[5, 3\]"),
    "no ids a token": (
        {"ids": lambda r: r.ids[:, :0]}, ValueError, r"topk_ids must have shape \[6, top_k\], got \[6, 0\]"),
    "ids of too many experts": (
        {"ids": lambda r: r.ids.repeat(1, 11), "weights": lambda r: r.weights.repeat(1, 11)},
        ValueError, "topk_ids has 33 experts a token: allowed are 1 to 32"),
    "weights of other slots": (
        {"weights": lambda r: r.weights[:, :2]}, ValueError, r"topk_weights must have shape \[6, 3\], got \[6, 2\]"),
    "weights in float64": ({"weights": lambda r: r.weights.double()}, TypeError, "topk_weights must be torch.float"),
    "ids elsewhere": ({"ids": lambda r: r.ids.to("meta")}, ValueError, "topk_ids is on meta, the other tensors are on"),
    "down of no experts": (
        {"down": lambda r: r.down[:0]}, ValueError, "num_experts=0: allowed are 1 to 1024"),
    "down in a list": ({"down": lambda r: [1.0]}, TypeError, "down must be a torch.Tensor, got list"),
    "down of two dimensions": (
        {"down": lambda r: r.down[0]}, ValueError, r"down must have shape \[1, 77, ffn\], got \[77, 35\]"),
    "gate_up of other experts": (
        {"gate_up": lambda r: r.gate_up[1:]}, ValueError, r"gate_up must have shape \[5, 70, 77\], got \[4, 70, 77\]"),
}  # fmt: skip
WRONG_OPTIONS = {
    "map in int64": ({"expert_map": lambda r: r.ids[0]}, TypeError, "expert_map must be torch.int32, got torch.int64"),
    "bias of the gate alone": (
        {"gate_up_bias": lambda r: r.down[:, 0]}, ValueError, r"gate_up_bias must have shape \[5, 70\], got \[5, 35\]"),
    "bias of other experts": (
        {"down_bias": lambda r: r.gate_up[:4, 0]}, ValueError, r"down_bias must have shape \[5, 77\], got \[4, 77\]"),
    "bias with gaps": (
        {"down_bias": lambda r: r.gate_up[:, 0]}, ValueError, "down_bias must be contiguous, got strides"),
    "out of another type": ({"out": lambda r: r.x.float()}, TypeError, "out must be torch.bfloat16, got torch.float32"),
    "out of another shape": (
        {"out": lambda r: r.x[None]}, ValueError, r"out must have the shape of x, \[6, 77\], got \[1, 6, 77\]"),
    "out by columns": ({"out": lambda r: r.x.T.contiguous().T}, ValueError, "out must be contiguous, got strides"),
    "8 bits of 16": ({"activations": lambda r: "a8"}, ValueError, "activations='a8': weights of 16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRONG, *WRONG_OPTIONS])
def test_what_is_wrong_is_told_before_any_launch(name, device, monkeypatch):
    routed = make_routed(device, tokens=6, **SHAPE)
    changes, error, message = (WRONG | WRONG_OPTIONS)[name]
    given = {key: value(routed) for key, value in changes.items()}
    wrong = routed.having(**given) if name in WRONG_OPTIONS else routed.but(**given)
    monkeypatch.setattr(type(_combine_kernel), "__getitem__", lambda self, grid: pytest.fail("a kernel was launched"))
    with pytest.raises(error, match=message):
        wrong.forward()
