"""Batches of every size, and rows wherever they lie: no tokens, more than the kernels take at once, far apart."""

import numpy as np
import pytest
import torch
from fast_cases import SMALL_FEW, SMALL_JOINED, make_tiles
from moe_cases import FORMS, make_layer

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import Gating, chunks, fast_experts, fast_moe, paper_moe, paper_stages
from tritonmoe_bench.kernels.fast import forward
from tritonmoe_bench.kernels.fast.logits import pieces
from tritonmoe_bench.kernels.fast.operator import fast_moe_op
from tritonmoe_bench.kernels.fast.route import Router

SHAPE = {"experts": 4, "top_k": 2, "hidden": 32, "ffn": 16}
FORWARDS = {
    "fast": lambda layer, x: fast_moe(x, *layer.parameters),
    "fast_few": lambda layer, x: fast_moe(x, *layer.parameters, tiles=SMALL_FEW),
    "fast_joined": lambda layer, x: fast_moe(x, *layer.parameters, tiles=SMALL_JOINED),
    "operator": lambda layer, x: fast_moe_op(x, *layer.parameters[:4], "softmax", False, 1, 1, 1.0, None),
    **{name: lambda layer, x, form=form: paper_moe(x, *layer.parameters, **form) for name, form in FORMS.items()},
}


@pytest.mark.parametrize("name", FORWARDS)
def test_no_tokens_give_no_rows(name, dtype, device):
    layer = make_layer(device, tokens=3, **SHAPE, dtype=dtype)
    y = FORWARDS[name](layer, layer.x[:0])
    assert y.shape == (0, SHAPE["hidden"])
    assert (y.dtype, y.device) == (layer.x.dtype, layer.x.device)


def test_no_tokens_with_packed_weights(device):
    case = Case("t", 4, 2, 128, 128, 1, quant="fp8_block")
    made = Weights(case, device)
    x = torch.zeros(0, 128, dtype=torch.bfloat16, device=device)
    assert fast_moe(x, made.router(), made.packed_gate_up(), made.packed_down(), 2).shape == (0, 128)


def test_what_is_wrong_is_said_of_no_tokens_too(device):
    layer = make_layer(device, tokens=3, **SHAPE)
    router, gate_up, down, *_ = layer.parameters
    for moe in (fast_moe, paper_moe):
        with pytest.raises(ValueError, match="top_k=9: allowed are 1 to 4 for 4 experts"):
            moe(layer.x[:0], router, gate_up, down, 9)


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("tokens", [10, 11, 20, 27])
def test_more_tokens_than_the_kernels_take_are_each_chunk_bit_by_bit_as_alone(name, tokens, device, monkeypatch):
    layer = make_layer(device, tokens=tokens, **SHAPE, skew=1.2)
    run = FORWARDS[name]
    alone = [run(layer, rows) for rows in layer.x.split(10)]
    monkeypatch.setattr(chunks, "MAX_SLOTS", 20)
    assert [rows.stop - rows.start for rows in chunks.chunks(tokens, 2)] == [len(rows) for rows in alone]
    assert torch.equal(run(layer, layer.x), torch.cat(alone))


@pytest.mark.parametrize(
    ("experts", "hidden", "invariant", "most"),
    [
        (1024, 8192, True, 2**17),
        (513, 8192, True, 2**31 // (16 * 513)),
        (512, 8192, True, 2**18),
        (1024, 2048, True, 2**18),  # four parts
        (1024, 8192, False, 2**18),
    ],
)
def test_a_chunk_has_no_more_logits_than_offsets_of_32_bits_reach(experts, hidden, invariant, most):
    router = Router(torch.empty(experts, hidden, device="meta"), 1, Gating())
    elements = router.logits_of_token(hidden, invariant)
    parts = chunks.chunks(2**18 + 5, 1, elements)
    assert max(rows.stop - rows.start for rows in parts) == most
    assert [*range(0, 2**18 + 5, most)] == [rows.start for rows in parts]
    assert pieces(most, hidden, experts, invariant)[0] * most * experts <= 2**31


def test_a_forward_that_does_not_depend_on_its_batch_is_cut_by_its_logits(device, monkeypatch):
    layer = make_layer(device, tokens=30, experts=4, top_k=2, hidden=1100, ffn=16)
    whole = fast_moe(layer.x, *layer.parameters, invariant=True)
    sizes = []
    run = forward._forward
    monkeypatch.setattr(forward, "_forward", lambda x, *rest: (sizes.append(len(x)), run(x, *rest)))
    monkeypatch.setattr(chunks, "OFFSETS", 13 * 3 * 4)  # 13 tokens of three parts
    assert torch.equal(fast_moe(layer.x, *layer.parameters, invariant=True), whole)
    assert sizes == [13, 13, 4]
    sizes.clear()
    slots = torch.zeros(30, 2, dtype=torch.int32, device=device)
    fast_experts(layer.x, *layer.parameters[1:3], slots, slots.float(), invariant=True)
    assert sizes == [30], "there are no logits"


def test_stages_are_of_one_chunk(device, monkeypatch):
    layer = make_layer(device, tokens=3, **SHAPE)
    with pytest.raises(ValueError, match="x has 0 tokens: allowed are 1 to 131072 of top_k=2"):
        paper_stages(layer.x[:0], *layer.parameters)


@pytest.mark.parametrize("tokens", [3, 5, 130])
def test_rows_that_lie_far_apart(tokens, device):
    """Further than 32-bit offsets reach, in sum."""
    layer = make_layer(device, tokens=tokens, **SHAPE)
    apart = 2**31 // (tokens - 1) + 8
    size = (tokens - 1) * apart + SHAPE["hidden"]
    if device == "cpu":  # NumPy's zeros are pages that take no memory until they are written
        storage = torch.from_numpy(np.zeros(size, dtype=np.int16)).view(layer.x.dtype)
    else:
        storage = torch.empty(size, dtype=layer.x.dtype, device=device)
    far = torch.as_strided(storage, layer.x.shape, (apart, 1)).copy_(layer.x)
    for tiles in (make_tiles(16), *([SMALL_FEW, SMALL_JOINED] if tokens < 9 else [])):
        expected = layer.fast(tiles=tiles)
        assert torch.equal(fast_moe(far, *layer.parameters, tiles=tiles), expected)
    assert torch.equal(paper_moe(far, *layer.parameters), layer.forward())


@pytest.mark.parametrize("gating", [Gating("sigmoid", True), Gating()], ids=str)
@pytest.mark.parametrize("tokens", [1, 6, 140])
def test_contiguous_views_of_a_larger_stack(tokens, gating, device):
    """Of more experts, of a larger buffer at an odd place, and of x by `view`."""
    layer = make_layer(device, tokens=tokens, **SHAPE)
    router, gate_up, down, *_ = layer.parameters
    expected = fast_moe(layer.x, router, gate_up, down, 2, gating)
    stacked = [torch.cat([part[:1], part, part[:1]])[1:-1] for part in (router, gate_up, down)]
    buffer = torch.zeros(layer.x.numel() + 3, dtype=layer.x.dtype, device=device)
    view = buffer[3:].view(layer.x.shape).copy_(layer.x)
    assert torch.equal(fast_moe(view, *stacked, 2, gating), expected)
