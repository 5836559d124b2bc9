"""The joined path of `fast`: up to 32 tokens, both GEMMs in one grid, no schedule."""

from dataclasses import replace

import pytest
import torch
from experts_cases import draw_ids, make_routed
from fast_cases import SMALL_JOINED, Spy, make_tiles
from moe_cases import make_layer

from tritonmoe_bench.baselines.fast import Fast
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import load_model
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import fast_experts, fast_moe, target
from tritonmoe_bench.kernels.fast import blocks, choose, choose_packed, forward, joined, logits, routing, tile_check
from tritonmoe_bench.kernels.fast.choose import (
    FEW_SMALL,
    JOINED,
    JOINED_FULLER,
    JOINED_SHORT,
    JOINED_SHORT_LONG,
    JOINED_SHORT_LONG_FULLER,
    LONG_JOINED_TOKENS,
    heuristic_tiles,
)
from tritonmoe_bench.kernels.fast.choose_packed import format_tiles, scheduled_tiles
from tritonmoe_bench.kernels.fast.route import Chosen
from tritonmoe_bench.kernels.fast.tile_types import (
    JOINED_TOKENS,
    FastTile,
    FastTiles,
    FewTiles,
    JoinedTile,
    JoinedTiles,
)
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.gating import GATINGS
from tritonmoe_bench.kernels.target import Target

SHAPES = {
    "one_of_everything": {"tokens": 1, "experts": 1, "top_k": 1, "hidden": 1, "ffn": 1},
    "fewer_slots_than_experts": {"tokens": 3, "experts": 19, "top_k": 3, "hidden": 77, "ffn": 35},
    "as_many": {"tokens": 4, "experts": 8, "top_k": 2, "hidden": 128, "ffn": 64},
    "more_slots_than_experts": {"tokens": 16, "experts": 5, "top_k": 3, "hidden": 77, "ffn": 35},
    "taller_tiles": {"tokens": 17, "experts": 6, "top_k": 2, "hidden": 80, "ffn": 40},
    "the_most_tokens": {"tokens": JOINED_TOKENS, "experts": 40, "top_k": 6, "hidden": 64, "ffn": 96},
    "all_experts": {"tokens": 9, "experts": 4, "top_k": 4, "hidden": 40, "ffn": 24},
}
PACKED = {
    "fp8_block": ((256, 384), JoinedTile(128, 128, 2), JoinedTile(64, 256, 2)),
    "mxfp4": ((288, 96), JoinedTile(64, 128, 2), JoinedTile(128, 256, 2)),
    "int4": ((256, 384), JoinedTile(32, 256, 2), JoinedTile(128, 128, 2)),
    "int4_g32": ((160, 352), JoinedTile(64, 128, 2), JoinedTile(128, 128, 2)),
}
HOPPER = Target(227 * 1024, 9)


def assert_same(y, other):
    """Bit by bit on a GPU; NumPy's sums depend on where a row lies."""
    if y.is_cuda:
        assert torch.equal(y, other)
    else:
        torch.testing.assert_close(y, other, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_awkward_shapes(shape, dtype, device):
    make_layer(device, **SHAPES[shape], dtype=dtype).assert_fast_right(tiles=SMALL_JOINED)


@pytest.mark.parametrize(("tokens", "splits"), [(5, 2), (20, 4)])
def test_sums_of_down_in_parts(tokens, splits, dtype, device):
    """Every dtype, with biases, which are added once, and experts elsewhere, whose parts nobody writes."""
    shape = {"tokens": tokens, "experts": 5, "top_k": 3, "hidden": 77, "ffn": 36}
    tiles = replace(SMALL_JOINED, splits=splits)
    routed = make_routed(device, **shape, dtype=dtype, ids=draw_ids(tokens, 5, 3, 0), activation="gpt_oss", biases=True)
    routed.assert_right(tiles=tiles)
    expert_map = torch.tensor([0, -1, 1, 2, -1], dtype=torch.int32, device=device)
    routed.having(expert_map=expert_map).assert_right(tiles=tiles)
    layer = make_layer(device, tokens=tokens, experts=6, top_k=2, hidden=64, ffn=128, dtype=dtype)
    layer.assert_fast_right(tiles=tiles)
    assert torch.equal(layer.fast(tiles=tiles), layer.fast(tiles=tiles))


@pytest.mark.parametrize("gating", GATINGS)
def test_every_gating(gating, device):
    layer = make_layer(device, tokens=5, experts=64, top_k=6, hidden=96, ffn=24, gating=gating)
    layer.assert_fast_right(tiles=SMALL_JOINED)


@pytest.mark.parametrize("skew", [0.0, 2.0])
@pytest.mark.parametrize("tokens", [2, 16, 30])
def test_bit_for_bit_what_the_path_with_a_schedule_gives(tokens, skew, dtype, device):
    """Where the order of a sum is the same: steps of one length, the weights on the left."""
    layer = make_layer(device, tokens=tokens, experts=24, top_k=4, hidden=160, ffn=96, dtype=dtype, skew=skew)
    tiles = JoinedTiles(JoinedTile(64, 32, 2), JoinedTile(64, 32, 2))
    tile = FastTile(64, 32, 4, 2, 32, 2, swap=True, small_swap=True)
    assert_same(
        layer.fast(tiles=tiles), layer.fast(tiles=FastTiles(16 if tokens <= 16 else 32, tile, tile, dynamic=False))
    )


@pytest.mark.parametrize(
    ("tokens", "dtype", "prepared"),
    [(3, "fp16", (False, False)), (20, "bf16", (True, True)), (3, "bf16", (True, False)), (3, "fp16", (False, True))],
    ids=str,
)
@pytest.mark.parametrize("quant", PACKED)
def test_packed_weights_as_on_the_path_with_a_schedule(quant, tokens, dtype, prepared, device):
    """Both parts prepared, one, or none."""
    (hidden, ffn), gate_up, down = PACKED[quant]
    case = Case("small", 10, 3, hidden, ffn, tokens, quant=quant, dtype=dtype)
    made, x = Weights(case, device), activations(case, draw_routing(case), device)
    parts = zip((made.packed_gate_up(), made.packed_down()), prepared)
    both = [part.prepared() if asked else part for part, asked in parts]
    layer = (x, made.router(), *both, case.top_k, case.gate)
    bits = "a8" if quant == "fp8_block" else "a16"
    first, second = (FastTile(tile.block_n, tile.step, 4, 2, tile.step, 2, True, True) for tile in (gate_up, down))
    if bits == "a8" and device != "cpu" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no units for e4m3")
    scheduled = fast_moe(
        *layer, tiles=FastTiles(16 if tokens <= 16 else 32, first, second, dynamic=False), activations=bits
    )
    y = fast_moe(*layer, tiles=JoinedTiles(gate_up, down), activations=bits)
    assert_same(y, scheduled)


def test_a_token_that_is_given_an_expert_twice(dtype, device):
    """By ids, and by a map that makes one expert of two; also where it has none."""
    ids = draw_ids(12, 5, 1, 0).expand(-1, 4).clone()
    ids[:, 2] = (ids[:, 0] + 1) % 5
    ids[3], ids[4, :3] = -1, 7
    shape = {"tokens": 12, "experts": 5, "top_k": 4, "hidden": 77, "ffn": 35}
    routed = make_routed(device, **shape, dtype=dtype, ids=ids, activation="gpt_oss", biases=True)
    routed.assert_right(tiles=SMALL_JOINED)
    expert_map = torch.tensor([0, 1, 1, 2, -1], dtype=torch.int32, device=device)
    routed.having(expert_map=expert_map).assert_right(tiles=SMALL_JOINED)


def test_own_experts_weights_and_counters(device):
    ids = torch.tensor([[3, -1, 3, 9], [2, 2, 2, 2], [0, 1, 2, 3]], device=device)
    weights = torch.tensor([[1.0, float("nan"), 2.0, 4.0], [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], device=device)
    route = Chosen.outside(ids, weights, 4, None)
    own, own_weights, arrivals = route.counted(torch.zeros(3, 8, device=device))
    assert own.tolist() == [[3, 4, 4, 4], [2, 4, 4, 4], [0, 1, 2, 3]]
    assert own_weights.tolist() == [[3.0, 0.0, 0.0, 0.0], [10.0, 0.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0]]
    assert arrivals.tolist() == [[0] * 4] * 3


def test_weights_on_the_input_of_a_token_with_several_experts_take_a_schedule(device, monkeypatch):
    """They cannot be summed where an expert is given twice."""
    monkeypatch.setattr(forward, "choose_tiles", lambda *_: SMALL_JOINED)
    monkeypatch.setattr(choose_packed, "row_block_tiles", lambda *_: make_tiles(16))
    ids = torch.tensor([[0, 0], [1, 2], [2, 2]], device=device)
    routed = make_routed(device, tokens=3, experts=3, top_k=2, hidden=40, ffn=24, ids=ids).having(weights_on_input=True)
    routed.assert_right()
    with pytest.raises(
        ValueError, match="JoinedTiles cannot weight the input of a token that may be given an expert twice"
    ):
        routed.forward(tiles=SMALL_JOINED)


def test_three_launches_after_the_logits(device, monkeypatch):
    names = []
    for module, name in (
        (logits, "_split_logits_kernel"), (routing, "_top_k_kernel"), (blocks, "_place_kernel"),
        (joined, "_joined_kernel"), (joined, "_own_kernel"), (forward, "_combine_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Spy(getattr(module, name), names))
    layer = make_layer(device, tokens=6, experts=4, top_k=2, hidden=40, ffn=24)
    layer.fast(tiles=SMALL_JOINED)
    assert names == ["_split_logits_kernel", "_top_k_kernel", "_joined_kernel", "_combine_kernel"]
    names.clear()
    ids = torch.zeros(6, 1, dtype=torch.int64, device=device)
    fast_experts(layer.x, *layer.parameters[1:3], ids, torch.ones_like(ids, dtype=torch.float32), tiles=SMALL_JOINED)
    assert names == ["_own_kernel", "_joined_kernel", "_combine_kernel"]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (JOINED_TOKENS + 1, {}, "JoinedTiles take up to 32 tokens, got 33"),
        (3, {"invariant": True}, "invariant=True takes one tile for all blocks"),
        (3, {"tiles": replace(SMALL_JOINED, splits=5)}, "into equal parts alone, got splits=5"),
    ],
)
def test_what_it_cannot_do(tokens, options, message, device):
    layer = make_layer(device, tokens=tokens, experts=4, top_k=2, hidden=40, ffn=24)
    with pytest.raises(ValueError, match=message):
        layer.fast(**{"tiles": SMALL_JOINED, **options})


def test_a_gpu_of_amd_s_is_refused(device, monkeypatch):
    monkeypatch.setattr(tile_check, "target_of", lambda device: Target(64 * 1024, 0))
    layer = make_layer(device, tokens=3, experts=4, top_k=2, hidden=40, ffn=24)
    with pytest.raises(ValueError, match="JoinedTiles need a GPU of NVIDIA's"):
        layer.fast(tiles=SMALL_JOINED)


@pytest.mark.parametrize(
    ("quant", "bits", "tiles", "message"),
    [
        ("fp8_block", "a16", SMALL_JOINED, "JoinedTiles over fp8_block multiply with activations='a8' alone"),
        ("fp8_block", "a8", replace(SMALL_JOINED, splits=2), "JoinedTiles split sums of 16-bit weights"),
        ("fp8_block", "a8", SMALL_JOINED, "JoinedTiles over fp8_block need steps of whole 128 columns"),
        ("fp8_block", "a8", JoinedTiles(JoinedTile(64, 128, 2), JoinedTile(64, 128, 2)),
         "JoinedTiles over fp8_block with activations='a8' need gate and up of 128 columns"),
        ("mxfp4", "a8", SMALL_JOINED, "JoinedTiles over mxfp4 multiply with activations='a16' alone"),
        ("int4", None, JoinedTiles(JoinedTile(64, 64, 2), JoinedTile(64, 128, 2)), "need steps of whole 128 columns"),
        ("int4", None, JoinedTiles(JoinedTile(256, 128, 2), JoinedTile(64, 128, 2)),
         "JoinedTiles over int4 need gate and up of 128 columns at the most"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_over_packed_weights(quant, bits, tiles, message, device):
    if device != "cpu" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("a8 over four bits needs a Hopper GPU")
    case = Case("small", 4, 2, 256, 128, 3, quant=quant)
    made, x = Weights(case, device), activations(case, draw_routing(case), device)
    both = made.packed_gate_up().prepared(), made.packed_down().prepared()
    with pytest.raises(ValueError, match=message):
        fast_moe(x, made.router(), *both, 2, case.gate, tiles=tiles, activations=bits)


@pytest.mark.parametrize(
    ("shape", "few", "most"),
    [
        ((128, 8, 2048, 768), 3, JOINED_TOKENS),
        ((64, 8, 2048, 1024), 2, JOINED_TOKENS),
        ((64, 4, 3584, 2560), 1, JOINED_TOKENS),
        ((8, 2, 4096, 14336), 1, LONG_JOINED_TOKENS),
        ((16, 2, 4096, 6400), 1, LONG_JOINED_TOKENS),
        ((256, 8, 7168, 2048), 1, JOINED_TOKENS),
    ],
)
def test_choice_on_hopper_alone(shape, few, most):
    for tokens in (1, 2, 3, 4, 8, 16, 17, 32, 33, 64):
        tiles = heuristic_tiles(HOPPER, *shape, tokens)
        kind = FewTiles if tokens <= few else JoinedTiles if tokens <= most else FastTiles
        assert isinstance(tiles, kind), tokens
        for major in (0, 8, 10, 12):
            assert not isinstance(heuristic_tiles(replace(HOPPER, nvidia_major=major), *shape, tokens), JoinedTiles)
    if most == JOINED_TOKENS:
        fuller = shape[2] * shape[3] <= FEW_SMALL
        assert heuristic_tiles(HOPPER, *shape, 32) == (JOINED_FULLER if fuller else JOINED)
    else:
        assert heuristic_tiles(HOPPER, *shape, 8) == replace(JOINED, splits=4 if shape[3] % 512 == 0 else 2)


@pytest.mark.parametrize(
    ("quant", "shape", "most"),
    [
        ("fp8_block", (128, 8, 2048, 768), 32), ("fp8_block", (128, 8, 4096, 1536), 8),
        ("fp8_block", (256, 8, 7168, 2048), 0), ("mxfp4", (128, 4, 2880, 2880), 16),
        ("int4", (128, 8, 2048, 768), 16), ("int4_g32", (384, 8, 7168, 2048), 16),
    ],
)  # fmt: skip
def test_choice_over_packed_weights(quant, shape, most):
    kind = formats()[quant]
    for tokens in (5, 8, 9, 16, 17, 32, 33):
        tiles = format_tiles(kind, HOPPER, shape, tokens, None)
        assert isinstance(tiles, JoinedTiles) == (tokens <= most), tokens
        other = "a16" if quant == "fp8_block" else "a8"
        if quant != "int4_g32":
            assert isinstance(format_tiles(kind, HOPPER, shape, tokens, other), FastTiles)
        assert not isinstance(format_tiles(kind, Target(227 * 1024, 10), shape, tokens, None), JoinedTiles)


@pytest.mark.parametrize("kind", [None, *formats().values()], ids=lambda kind: kind.name if kind else "none")
def test_there_are_tiles_with_a_schedule_for_every_format(kind):
    assert isinstance(scheduled_tiles(kind, HOPPER, (4, 2, 256, 384), 3), FastTiles)


@pytest.mark.parametrize("quant", ["int4", "mxfp4"])
def test_slots_of_a_shared_expert_take_a_schedule_where_weights_multiply_the_input(quant, monkeypatch):
    """A token might have an expert twice, as far as the kernels know."""
    monkeypatch.setattr(choose_packed, "tuned_tiles", lambda *_: None)
    for module in (choose_packed, target):
        monkeypatch.setattr(module, "target_of", lambda device: HOPPER)
    model = load_model("llama_4_scout")
    shape = (model.num_experts, model.top_k, model.hidden_dim, model.ffn_dim)
    case = Case(model.name, *shape, 8, gating=model.native_gating, layer="native", facts=model.facts(), quant=quant)
    assert isinstance(format_tiles(formats()[quant], HOPPER, shape, 8, None), JoinedTiles)
    assert Fast().config(case).startswith("m16 ")


@pytest.mark.parametrize(
    ("hidden", "ffn", "tokens", "tiles"),
    [
        (2048, 192, 4, JOINED_SHORT),
        (4096, 384, 32, JOINED_SHORT),
        (2048, 512, 16, JOINED),
        (2048, 512, 17, JOINED_SHORT),
        (2048, 768, 32, JOINED_FULLER),
        (7168, 256, 8, JOINED_SHORT_LONG),
        (7168, 256, 9, JOINED_SHORT),
        (7168, 256, 16, JOINED_SHORT),
        (7168, 256, 17, JOINED_SHORT_LONG_FULLER),
        (7168, 2048, 8, JOINED),
    ],
)
def test_short_sums_of_down_have_tiles_of_their_own(hidden, ffn, tokens, tiles):
    assert heuristic_tiles(HOPPER, 128, 8, hidden, ffn, tokens) == tiles


def test_choice_does_not_take_it_in_the_interpreter():
    assert not isinstance(choose.choose_tiles(torch.device("cpu"), 128, 8, 2048, 768, 8), JoinedTiles)
