"""The path of `fast` with a schedule, with both GEMMs in one grid."""

from dataclasses import replace

import pytest
import torch
from experts_cases import draw_ids, make_routed
from fast_cases import Spy, make_tiles
from moe_cases import make_layer

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import fast_moe
from tritonmoe_bench.kernels.fast import blocks, forward, logits, one_grid, routing, tile_check
from tritonmoe_bench.kernels.fast.choose import FEW_WEIGHTS, LONG, ONE_GRID_LIGHTEST, ONE_GRID_ROWS, heuristic_tiles
from tritonmoe_bench.kernels.fast.choose_packed import format_tiles
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.target import Target

HOPPER = Target(227 * 1024, 9)
SHAPES = {
    "one_of_everything": {"tokens": 1, "experts": 1, "top_k": 1, "hidden": 1, "ffn": 1},
    "nothing_divides": {"tokens": 33, "experts": 5, "top_k": 3, "hidden": 77, "ffn": 35},
    "neighbours": {"tokens": 150, "experts": 3, "top_k": 2, "hidden": 64, "ffn": 64, "skew": 2.0},
    "idle_experts": {"tokens": 3, "experts": 19, "top_k": 2, "hidden": 80, "ffn": 40},
}


def as_one(tiles, **changes):
    return replace(tiles, one_grid=True, **changes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("swap", [False, True])
def test_bit_for_bit_what_two_grids_give(shape, swap, dtype, device):
    layer = make_layer(device, **SHAPES[shape], dtype=dtype)
    tiles = make_tiles(16, swap=swap)
    y = layer.fast(tiles=as_one(tiles))
    assert torch.equal(y, layer.fast(tiles=tiles))
    layer.assert_fast_right(tiles=as_one(tiles))


def test_ladders_tails_and_bulk_copies(device):
    if device != "cpu" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no bulk copies")
    layer = make_layer(device, tokens=90, experts=4, top_k=2, hidden=128, ffn=64, skew=1.5)
    for gate_up in (FastTile(32, 32, 4, 2, 32, 2, True, True), FastTile(32, 32, 4, 2, 32, 2, bulk=True)):
        tiles = FastTiles(160, gate_up, FastTile(64, 32, 4, 2, 32, 2, True, True))
        assert torch.equal(layer.fast(tiles=as_one(tiles)), layer.fast(tiles=tiles))


@pytest.mark.parametrize("bits", ["a8", "a16"])
def test_fp8_weights(bits, device):
    if device != "cpu" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no units for e4m3")
    case = Case("small", 6, 3, 256, 384, 40, quant="fp8_block", skew=1.0)
    made, x = Weights(case, device), activations(case, draw_routing(case), device)
    layer = (x, made.router(), made.packed_gate_up(), made.packed_down(), case.top_k, case.gate)
    tile = FastTile(128, 128, 4, 2, 128, 2, True, True)
    tiles = FastTiles(32, tile, tile)
    assert torch.equal(
        fast_moe(*layer, tiles=as_one(tiles), activations=bits), fast_moe(*layer, tiles=tiles, activations=bits)
    )


def test_routing_by_the_caller_biases_and_experts_elsewhere(dtype, device):
    ids = draw_ids(40, 5, 3, 0)
    shape = {"tokens": 40, "experts": 5, "top_k": 3, "hidden": 77, "ffn": 35}
    routed = make_routed(device, **shape, dtype=dtype, ids=ids, activation="gpt_oss", biases=True)
    routed.assert_right(tiles=as_one(make_tiles(16)))
    expert_map = torch.tensor([0, -1, 1, 2, -1], dtype=torch.int32, device=device)
    routed.having(expert_map=expert_map).assert_right(tiles=as_one(make_tiles(16)))


def test_counters_begin_at_0_wherever_there_is_a_block(device, monkeypatch):
    """In memory that comes filled with anything."""
    real = torch.empty

    def poisoned(*shape, **options):
        made = real(*shape, **options)
        return made.fill_(-7) if made.dtype == torch.int32 else made

    monkeypatch.setattr(blocks.torch, "empty", poisoned)
    experts = torch.tensor([[0, 3], [3, 1], [3, 0]], dtype=torch.int32, device=device)
    _, table, arrivals = blocks.launch_place(experts, 5, 1, counted=True)
    used = table[blocks.ROWS.value] > 0
    assert used.sum() == 6
    assert arrivals[used].tolist() == [0] * 6
    assert (arrivals[~used] == -7).all()
    assert blocks.launch_place(experts, 5, 1)[2] is None


def test_a_launch_less(device, monkeypatch):
    names = []
    for module, name in (
        (logits, "_split_logits_kernel"), (routing, "_top_k_kernel"), (blocks, "_place_kernel"),
        (one_grid, "_one_grid_kernel"), (forward, "_combine_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Spy(getattr(module, name), names))
    make_layer(device, tokens=40, experts=4, top_k=2, hidden=40, ffn=24).fast(tiles=as_one(make_tiles(16)))
    assert names == [
        "_split_logits_kernel", "_top_k_kernel", "_place_kernel", "_one_grid_kernel", "_combine_kernel"
    ]  # fmt: skip


def test_what_it_cannot_do(device, monkeypatch):
    layer = make_layer(device, tokens=3, experts=4, top_k=2, hidden=40, ffn=24)
    uneven = replace(make_tiles(16), down=replace(make_tiles(16).down, num_warps=8))
    with pytest.raises(ValueError, match="one_grid needs as many warps for both GEMMs, got 4 and 8"):
        as_one(uneven)
    case = Case("small", 4, 2, 256, 128, 3, quant="int4")
    made, x = Weights(case, device), activations(case, draw_routing(case), device)
    with pytest.raises(ValueError, match="one_grid is for weights of 16 bits and fp8_block, got int4"):
        fast_moe(x, made.router(), made.packed_gate_up(), made.packed_down(), 2, tiles=as_one(make_tiles(16)))
    monkeypatch.setattr(tile_check, "target_of", lambda device: Target(64 * 1024, 0))
    with pytest.raises(ValueError, match="one_grid needs a GPU of NVIDIA's"):
        layer.fast(tiles=as_one(make_tiles(16)))


@pytest.mark.parametrize(
    "shape",
    [
        (128, 8, 2048, 768),
        (64, 4, 3584, 2560),
        (8, 2, 4096, 14336),
        (256, 8, 7168, 2048),
        (256, 8, 7168, 256),
        (128, 8, 2048, 192),
    ],
)
def test_choice_on_hopper_alone(shape):
    for tokens in (64, 128, 512, 4096):
        tiles = heuristic_tiles(HOPPER, *shape, tokens)
        assert tiles.one_grid == (shape[2] * shape[3] <= FEW_WEIGHTS and shape[2] < LONG)
        lightest = tiles.one_grid and tokens * shape[1] <= ONE_GRID_ROWS * shape[0] and shape[3] >= 256
        assert (tiles == ONE_GRID_LIGHTEST) == lightest
        for major in (0, 8, 10, 12):
            assert not heuristic_tiles(replace(HOPPER, nvidia_major=major), *shape, tokens).one_grid


@pytest.mark.parametrize(
    ("shape", "most", "low"),
    [((128, 8, 2048, 768), 128, 128), ((256, 8, 2048, 512), 256, 512), ((128, 8, 4096, 1536), 0, 0)],
)
def test_choice_over_fp8_weights(shape, most, low):
    """most: tokens with one grid; low: with low tiles."""
    for tokens in (64, 128, 256, 512, 1024):
        tiles = format_tiles(formats()["fp8_block"], HOPPER, shape, tokens, None)
        assert tiles.one_grid == (tokens <= most)
        assert (tiles.block_m == 32) == (tokens <= low)
        assert not format_tiles(formats()["fp8_block"], HOPPER, shape, tokens, "a16").one_grid
