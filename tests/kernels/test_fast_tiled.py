"""Weights of 16 bits in tiles: the same numbers in another order in memory, and so the same results of
the same tiles, bit by bit."""

from dataclasses import replace

import pytest
import torch
from experts_cases import draw_ids, make_routed
from fast_cases import needs_bulk_engine
from moe_cases import make_layer, random

from tritonmoe_bench.kernels import fast_moe, tiled, untiled
from tritonmoe_bench.kernels.fast import choose
from tritonmoe_bench.kernels.fast.choose import choose_tiles, heuristic_tiles
from tritonmoe_bench.kernels.fast.tile_types import (
    FastTile,
    FastTiles,
    FewTile,
    FewTiles,
    JoinedTile,
    JoinedTiles,
    steps_of,
)
from tritonmoe_bench.kernels.fast.tiled import TILE, is_tiled, matrices
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.target import MORE_WARPS, Target

SHAPE = {"experts": 6, "top_k": 2, "hidden": 192, "ffn": 128}
"""Three tiles across, of which a step of 128 columns leaves one, and two down."""
NARROW = FastTile(32, 64, 4, 2, 64, 2, swap=True, small_swap=True)
EVEN = FastTile(64, 64, 4, 2, 64, 3)
WIDE = FastTile(128, 128, 4, 2, 64, 2, swap=True)
BULK = replace(EVEN, bulk=True, small_stages=2)
FEW = FewTiles(FewTile(16, 64, 2, 2), FewTile(32, 128, 2, 2))
TILES = {
    "half_a_tile": FastTiles(16, NARROW, NARROW),
    "a_tile": FastTiles(192, EVEN, EVEN),
    "two_tiles": FastTiles(64, WIDE, WIDE),
    "bulk": FastTiles(64, BULK, BULK),
    "bulk_of_two": FastTiles(64, replace(BULK, block_n=128), replace(BULK, block_n=128)),
    "bulk_of_the_left_operand": FastTiles(64, replace(BULK, swap=True), replace(BULK, swap=True)),
    "one_grid": FastTiles(64, WIDE, WIDE, one_grid=True),
    "one_grid_bulk": FastTiles(64, BULK, BULK, one_grid=True),
    "few": FEW,
    "few_rows": FewTiles(FewTile(8, 128, 1, 1), FewTile(16, 64, 2, 3)),
    "joined": JoinedTiles(JoinedTile(32, 64, 3), JoinedTile(64, 128, 2)),
    "joined_in_parts": JoinedTiles(JoinedTile(32, 128, 2), JoinedTile(64, 64, 2), splits=2),
}


def both(layer, **options):
    """What a layer gives with its weights as they are, and in tiles."""
    router, gate_up, down, top_k, gate = layer.parameters
    bias = layer.weights.correction_bias()
    return [
        fast_moe(layer.x, router, *weights, top_k, gate, correction_bias=bias, **options)
        for weights in ((gate_up, down), (tiled(gate_up), tiled(down)))
    ]


def test_where_each_number_lies(device):
    weights = random(2, 128, 192, dtype="bf16", device=device)
    parts = tiled(weights)
    assert parts.shape == (2, 2, 3, TILE, TILE)
    assert parts.is_contiguous()
    assert matrices(parts) == matrices(weights) == (2, 128, 192)
    assert is_tiled(parts)
    assert not is_tiled(weights)
    for row, column in ((0, 0), (63, 64), (64, 63), (127, 191)):
        here = parts[:, row // TILE, column // TILE, row % TILE, column % TILE]
        assert torch.equal(here, weights[:, row, column])
    assert torch.equal(untiled(parts), weights)


@pytest.mark.parametrize("shape", [(2, 96, 64), (2, 64, 96)], ids=str)
def test_what_is_no_whole_tiles_stays_as_it_is(shape):
    with pytest.raises(ValueError, match=r"whole tiles of 64 by 64.* leave such weights.* gate and up each"):
        tiled(torch.zeros(shape))


def test_what_has_no_tiles():
    packed = Fp8Block.pack(torch.zeros(2, 128, 128))
    with pytest.raises(TypeError, match=r"tiled takes a torch.Tensor, got Fp8Block: .* prepared\(\) gives"):
        tiled(packed)
    with pytest.raises(ValueError, match=r"tiled takes \[experts, rows, columns\], got \[128, 128\]$"):
        tiled(torch.zeros(128, 128))
    with pytest.raises(ValueError, match=r"got \[2, 1, 1, 64, 64\]: they are tiled already"):
        tiled(tiled(torch.zeros(2, 64, 64)))
    with pytest.raises(TypeError, match=r"untiled takes a .*Tensor, got Fp8Block"):
        untiled(packed)
    for shape in ((2, 64, 64), (2, 1, 1, 32, 128)):
        with pytest.raises(ValueError, match=r"untiled takes \[experts, rows / 64, columns / 64, 64, 64\], as tiled"):
            untiled(torch.zeros(shape))


def test_a_tile_of_both_gate_and_up_is_refused_beside_down(device):
    """Of an ffn of 96 all rows of gate and up are three tiles, the second of which has rows of both."""
    layer = make_layer(device, tokens=3, **SHAPE | {"ffn": 96})
    router, gate_up, down, top_k, gate = layer.parameters
    padded = tiled(torch.nn.functional.pad(down, (0, 32)))
    with pytest.raises(ValueError, match=r"gate_up must have shape \[6, 4, 3, 64, 64\], got \[6, 3, 3, 64, 64\]"):
        fast_moe(layer.x, router, tiled(gate_up), padded, top_k, gate)
    halves = torch.nn.functional.pad(gate_up.unflatten(1, (2, 96)), (0, 0, 0, 32)).flatten(1, 2)
    expected = fast_moe(layer.x, router, gate_up, down, top_k, gate)
    torch.testing.assert_close(fast_moe(layer.x, router, tiled(halves), padded, top_k, gate), expected)


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("name", TILES)
def test_the_same_bits_on_every_path(name, tokens, dtype, device):
    tiles = TILES[name]
    if isinstance(tiles, FastTiles) and needs_bulk_engine(tiles):
        pytest.skip("bulk copies need compute capability 9")
    plain, in_tiles = both(make_layer(device, tokens=tokens, **SHAPE, dtype=dtype), tiles=tiles)
    assert torch.equal(plain, in_tiles)


@pytest.mark.parametrize("tokens", [2, 33, 140])
def test_the_same_bits_where_they_do_not_depend_on_the_batch(tokens, device):
    plain, in_tiles = both(make_layer(device, tokens=tokens, **SHAPE, skew=1.2), invariant=True)
    assert torch.equal(plain, in_tiles)


@pytest.mark.parametrize("tokens", [1, 2, 20, 140])
def test_right_with_the_tiles_that_are_chosen(tokens, dtype, device):
    layer = make_layer(device, tokens=tokens, **SHAPE, dtype=dtype)
    layer._assert_right(both(layer)[1], 1.5)


def test_with_biases_an_activation_and_experts_elsewhere(device):
    expert_map = torch.tensor([5, -1, 0, 1, 2, 3, 4, -1], dtype=torch.int32, device=device)
    routed = make_routed(
        device, tokens=21, **SHAPE, ids=draw_ids(21, 8, 2), biases=True, activation="gpt_oss", expert_map=expert_map
    )
    in_tiles = routed.but(gate_up=tiled(routed.gate_up), down=tiled(routed.down))
    assert torch.equal(in_tiles.forward(), routed.forward())
    few = {"tiles": FEW}
    assert torch.equal(in_tiles.forward(**few), routed.forward(**few))


def test_compiled_they_stay_in_the_graph(device):
    layer = make_layer(device, tokens=5, **SHAPE)
    router, gate_up, down, top_k, gate = layer.parameters
    weights = tiled(gate_up), tiled(down)
    compiled = torch.compile(lambda x: fast_moe(x, router, *weights, top_k, gate), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(layer.x), fast_moe(layer.x, router, *weights, top_k, gate))
    torch.compiler.reset()


def test_both_or_none_and_in_whole_tiles(device):
    layer = make_layer(device, tokens=3, **SHAPE)
    router, gate_up, down, top_k, gate = layer.parameters
    with pytest.raises(ValueError, match=r"gate_up must have shape \[6, 4, 3, 64, 64\], got \[6, 256, 192\]"):
        fast_moe(layer.x, router, gate_up, tiled(down), top_k, gate)
    with pytest.raises(ValueError, match=r"gate_up must have shape \[6, 256, 192\], got \[6, 4, 3, 64, 64\]"):
        fast_moe(layer.x, router, tiled(gate_up), down, top_k, gate)
    with pytest.raises(ValueError, match="x has hidden=190"):
        fast_moe(layer.x[:, :190], router[:, :190].contiguous(), tiled(gate_up), tiled(down), top_k, gate)
    halves = FewTiles(FewTile(1, 32, 1, 1), FewTile(1, 64, 1, 1))
    with pytest.raises(ValueError, match="whole 64 columns"):
        fast_moe(layer.x, router, tiled(gate_up), tiled(down), top_k, gate, tiles=halves)
    quarters = JoinedTiles(JoinedTile(32, 64, 2), JoinedTile(64, 64, 2), splits=4)
    with pytest.raises(ValueError, match="into equal parts of whole tiles alone, got splits=4"):
        fast_moe(layer.x, router, tiled(gate_up), tiled(down), top_k, gate, tiles=quarters)


def test_bulk_copies_of_tiles_are_of_one_tile_a_step_and_never_of_the_left_operand():
    weights = torch.zeros(2, 2, 1, TILE, TILE, dtype=torch.float16)
    kept = FastTile(64, 64, 4, 2, 64, 2, bulk=True)
    assert kept.fitting(weights) is kept
    for tile in (FastTile(64, 128, 4, 2, 128, 2, bulk=True), FastTile(64, 64, 4, 2, 64, 2, swap=True, bulk=True),
                 FastTile(32, 64, 4, 2, 64, 2, bulk=True)):  # fmt: skip
        assert not tile.fitting(weights).bulk
    with pytest.raises(ValueError, match="steps of 64 columns, got 128"):
        FastTile(64, 128, 4, 2, 128, 2, bulk=True).operand(weights)


IN_TILES = {
    (8, 2, 4096, 14336): FewTile(2, 512, 2, 2),
    (64, 8, 3584, 2560): FewTile(1, 512, 1, 4),
    (32, 4, 2880, 2880): FewTile(2, 512, 2, 2),
    (128, 8, 2048, 768): FewTile(1, 512, 1, 2),
    (256, 8, 7168, 2048): FewTile(1, 2048, 4, 2),
}
"""The shapes of layers, and their tiles of gate and up at one token."""


@pytest.fixture
def hopper(monkeypatch):
    """A device that is taken for a Hopper GPU, with no tuned table."""
    target = Target(227 * 1024, 9)
    monkeypatch.setattr(choose, "target_of", lambda device: target)
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: None)
    return torch.device("cuda", 0)


@pytest.mark.parametrize("shape", IN_TILES, ids=str)
def test_gate_and_up_of_a_few_tokens_have_tiles_of_their_own(shape, hopper):
    plain, in_tiles = (choose_tiles(hopper, *shape, 1, in_tiles=tiles) for tiles in (False, True))
    assert in_tiles.gate_up == IN_TILES[shape]
    assert in_tiles.down == replace(plain.down, stages=min(plain.down.stages, 4 if MORE_WARPS else 6))


@pytest.mark.parametrize("shape", IN_TILES, ids=str)
def test_all_steps_that_are_chosen_are_whole_tiles(shape, hopper):
    for tokens in (1, 2, 4, 16, 32, 64, 128, 512, 4096):
        tiles = choose_tiles(hopper, *shape, tokens, in_tiles=True)
        assert all(step % TILE == 0 for step in steps_of(tiles))
        if tokens > 4:
            assert tiles == choose_tiles(hopper, *shape, tokens)


def test_measured_tiles_of_other_steps_are_passed_over(hopper, monkeypatch):
    half, shape = FastTile(64, 32, 4, 2, 64, 2), (8, 2, 4096, 14336)
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: FastTiles(64, half, EVEN))
    assert choose_tiles(hopper, *shape, 64) == FastTiles(64, half, EVEN)
    assert choose_tiles(hopper, *shape, 64, in_tiles=True) == heuristic_tiles(Target(227 * 1024, 9), *shape, 64)


def test_of_measured_tiles_for_a_few_tokens_only_the_step_that_is_used_has_to_fit(hopper, monkeypatch):
    shape = (8, 2, 4096, 14336)
    measured = FewTiles(FewTile(1, 32, 1), FewTile(4, 256, 4, 3))
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: measured)
    assert choose_tiles(hopper, *shape, 1) == measured
    assert choose_tiles(hopper, *shape, 1, in_tiles=True) == FewTiles(IN_TILES[shape], measured.down)
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: replace(measured, down=FewTile(4, 32, 4)))
    monkeypatch.setattr(choose, "heuristic_tiles", lambda *_: FewTiles(FEW.gate_up, FEW.down))
    assert choose_tiles(hopper, *shape, 1, in_tiles=True) == FewTiles(IN_TILES[shape], FEW.down)
    low = FastTile(64, 64, 4, 2, 32, 2)
    fixed = FastTiles(64, low, low, dynamic=False)
    monkeypatch.setattr(choose, "tuned_tiles", lambda *_: fixed)
    assert choose_tiles(hopper, *shape, 64, in_tiles=True) == fixed
