"""The expert GEMMs of `fast`: every height of tile, both orientations, by pointers and by bulk copies, tails."""

from dataclasses import replace

import pytest
import torch
from fast_cases import boundary_loads, list_blocks, make_tiles, needs_bulk_engine, served_by, shuffled_experts
from moe_cases import assert_accurate, make_layer, random

from tritonmoe_bench.kernels import fast_moe
from tritonmoe_bench.kernels.fast import choose, gemm
from tritonmoe_bench.kernels.fast.choose import INTERPRETER, choose_tiles, row_block_tiles
from tritonmoe_bench.kernels.fast.gemm import launch_down, launch_gate_up
from tritonmoe_bench.kernels.fast.tile_types import HEIGHTS, FastTile, FastTiles, FewTiles
from tritonmoe_bench.kernels.paper.tiles import GROUP_M
from tritonmoe_bench.kernels.target import Target

EVEN = {"hidden": 128, "ffn": 128}
"""Divided by every block of `make_tiles`, so that no load of weights has a mask."""
PARTLY = {"hidden": 72, "ffn": 88}
"""Divided by none, in rows of whole 16 bytes, as bulk copies need them."""
ODD = {"hidden": 77, "ffn": 35}
MODELS = [(8, 2, 4096, 14336), (60, 4, 3584, 2560), (256, 8, 7168, 2048), (128, 8, 2048, 768), (8, 2, 4097, 14337)]
TOKENS = [1, 2, 3, 8, 32, 128, 512, 8192]


def chosen(shared_kib: int, major: int) -> list[tuple[tuple[int, ...], list[FastTiles]]]:
    """Each shape of MODELS, and its tiles at each of TOKENS, on a GPU of such shared memory and compute capability."""
    target = Target(shared_kib * 1024, major)
    return [(shape, [row_block_tiles(target, *shape, tokens) for tokens in TOKENS]) for shape in MODELS]


CHOSEN = {
    str(tiles): tiles
    for shared, major in ((64, 9), (163, 9), (227, 9), (227, 10))
    for _, row in chosen(shared, major)
    for tiles in row
} | {str(choose.ONE_GRID_LIGHTEST): choose.ONE_GRID_LIGHTEST}


def gemms(x, gate_up, down, experts, tiles) -> torch.Tensor:
    """Both GEMMs, in slot order, [N, hidden], over blocks that no kernel made."""
    blocks = list_blocks(experts, down.shape[0], tiles.block_m)
    return launch_down(launch_gate_up(x, gate_up, blocks, experts.shape[1], tiles), down, blocks, tiles)


def plain(x, gate_up, down, experts, dtype) -> torch.Tensor:
    """The same by PyTorch, computed in `dtype`."""
    out = torch.empty(experts.numel(), x.shape[1], dtype=dtype, device=x.device)
    slots = experts.flatten()
    for expert in slots.unique().tolist():
        own = torch.where(slots == expert)[0]
        rows = x[own // experts.shape[1]].to(dtype)
        gate, up = (rows @ part.to(dtype).T for part in gate_up[expert].chunk(2))
        out[own] = (torch.nn.functional.silu(gate) * up) @ down[expert].to(dtype).T
    return out


def assert_gemms_right(experts, num_experts, tiles, dtype, device, *, hidden, ffn) -> None:
    if needs_bulk_engine(tiles):
        pytest.skip("bulk copies need compute capability 9")
    x = random(experts.shape[0], hidden, dtype=dtype, device=device)
    gate_up = random(num_experts, 2 * ffn, hidden, dtype=dtype, device=device, seed=1, scale=hidden**-0.5)
    down = random(num_experts, hidden, ffn, dtype=dtype, device=device, seed=2, scale=ffn**-0.5)
    experts = experts.to(device)
    layer = x, gate_up, down, experts
    assert_accurate(gemms(*layer, tiles), plain(*layer, torch.float32), plain(*layer, x.dtype), 1.5)


@pytest.fixture
def tiles_taken(monkeypatch, device):
    """(rows of the block, height, swapped) of every tile that a GEMM computes; None on a GPU, which does not tell."""
    taken = set() if device == "cpu" else None
    if taken is not None:
        for name in ("_gate_up_tile", "_down_tile"):
            tile = getattr(gemm, name)
            names = tile.arg_names

            def note(*arguments, tile=tile, names=names):
                value = dict(zip(names, arguments))
                rows = int(value["rows"].handle.data.item())
                taken.add((rows, value["HEIGHT"] + value["TAIL"], bool(value["SWAP"])))
                return tile(*arguments)

            monkeypatch.setattr(gemm, name, note)
    return taken


@pytest.mark.parametrize("bulk", [False, True], ids=["pointers", "bulk"])
@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
@pytest.mark.parametrize("block_m", HEIGHTS)
def test_every_block_gets_the_lowest_tile_that_holds_it(block_m, swap, bulk, tiles_taken, device):
    loads = boundary_loads(block_m)
    tiles = make_tiles(block_m, swap, bulk=bulk)
    assert_gemms_right(shuffled_experts(loads), len(loads), tiles, "bf16", device, **PARTLY)
    if tiles_taken is not None:
        rows = set(list_blocks(shuffled_experts(loads), len(loads), block_m).table[2].tolist()) - {0}
        assert tiles_taken == {(number, served_by(number, tiles), swap) for number in rows}


@pytest.mark.parametrize("bulk", [False, True], ids=["pointers", "bulk"])
@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
@pytest.mark.parametrize("block_m", HEIGHTS)
def test_every_block_gets_the_one_tile_where_heights_are_fixed(block_m, swap, bulk, tiles_taken, device):
    loads = [3, 0, block_m, block_m + 17]
    tiles = make_tiles(block_m, swap, bulk=bulk, dynamic=False)
    assert_gemms_right(shuffled_experts(loads), len(loads), tiles, "fp16", device, **PARTLY)
    if tiles_taken is not None:
        assert {(height, swapped) for _, height, swapped in tiles_taken} == {(served_by(3, tiles), swap)}


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
@pytest.mark.parametrize("block_m", HEIGHTS)
def test_the_ladder_has_a_tile_for_every_block(block_m, swap, dynamic):
    tiles = make_tiles(block_m, swap, dynamic=dynamic)
    heights = [height + tail for height, tail, *_ in tiles.ladder(tiles.gate_up)]
    assert heights == sorted(set(heights))
    for rows in range(1, block_m + 1):
        assert min(height for height in heights if height >= rows) == served_by(rows, tiles)


def test_a_rung_says_how_its_tile_computes():
    tile = FastTile(64, 64, 4, 2, 32, 3, swap=True, small_swap=False)
    assert [tile.rung(rows) for rows in (16, 32, 64, 128, 144, 256)] == [
        (16, 0, 32, 3, False), (32, 0, 32, 3, True), (64, 0, 64, 2, True),
        (128, 0, 64, 2, True), (128, 16, 64, 2, True), (128, 128, 64, 2, True),
    ]  # fmt: skip


@pytest.mark.parametrize("swap", [False, True])
def test_up_to_16_rows_have_an_orientation_of_their_own(swap, tiles_taken, device):
    tiles = make_tiles(64, swap, small_swap=not swap)
    assert_gemms_right(shuffled_experts([16, 40, 17]), 3, tiles, "bf16", device, **PARTLY)
    if tiles_taken is not None:
        assert tiles_taken == {(16, 16, not swap), (40, 64, swap), (17, 32 if swap else 64, swap)}


@pytest.mark.parametrize("bulk", [False, True], ids=["pointers", "bulk"])
@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
@pytest.mark.parametrize("block_m", [64, 160])
def test_a_shape_that_all_divide(block_m, swap, bulk, device):
    experts = shuffled_experts([9, 31, 0, 200])
    assert_gemms_right(experts, 4, make_tiles(block_m, swap, bulk=bulk), "fp16", device, **EVEN)


@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
@pytest.mark.parametrize("block_m", [64, 160])
def test_a_shape_that_none_divides(block_m, swap, device):
    experts = shuffled_experts([9, 31, 0, 200])
    assert_gemms_right(experts, 4, make_tiles(block_m, swap), "bf16", device, **ODD)


@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
def test_a_layer_of_one_neuron_and_one_output(swap, device):
    assert_gemms_right(torch.zeros(3, 1, dtype=torch.int64), 1, make_tiles(16, swap), "bf16", device, hidden=1, ffn=1)


@pytest.mark.parametrize("swap", [False, True], ids=["rows_left", "weights_left"])
def test_more_blocks_of_an_expert_than_share_a_weight_tile(swap, device):
    """Groups of blocks run side by side; the last one is smaller, and the next expert follows it."""
    loads = [5, 16 * GROUP_M + 37, 0, 20]
    assert_gemms_right(shuffled_experts(loads), 4, make_tiles(16, swap), "bf16", device, **PARTLY)


def test_a_token_s_row_serves_all_its_slots(device):
    """In the tail of a tall block too."""
    experts = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(t))[:3] for t in range(250)])
    assert 128 < experts.flatten().bincount().max() <= 192
    for tiles in (make_tiles(64), make_tiles(192, True)):
        assert_gemms_right(experts, 5, tiles, "bf16", device, **ODD)


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("block_m", [32, 160])
def test_fixed_and_dynamic_heights_in_whole_forwards(block_m, dynamic, dtype, device):
    layer = make_layer(device, tokens=90, experts=3, top_k=2, hidden=77, ffn=35, dtype=dtype, skew=1.2)
    layer.assert_fast_right(tiles=make_tiles(block_m, swap=True, dynamic=dynamic))


@pytest.mark.parametrize("name", CHOSEN)
def test_every_choice(name, device):
    tiles = CHOSEN[name]
    assert_gemms_right(shuffled_experts([7, 0, 30, 170]), 4, tiles, "bf16", device, hidden=136, ffn=200)


def test_every_declared_tile_is_chosen_somewhere():
    declared = {name: value for name, value in vars(choose).items() if isinstance(value, (FastTile, FastTiles))}
    used = {part for tiles in CHOSEN.values() for part in (tiles, tiles.gate_up, tiles.down)} | {INTERPRETER}
    assert [name for name, value in declared.items() if value not in used] == []


def test_choice_grows_with_the_rows_of_an_expert_where_memory_allows():
    for shared_kib, grows in ((64, False), (163, False), (227, True)):
        for _, row in chosen(shared_kib, 9):
            heights = [tiles.block_m for tiles in row]
            assert (heights[0] < heights[-1]) == grows


def test_choice_in_the_interpreter():
    for tokens in TOKENS:
        assert choose_tiles(torch.device("cpu"), *MODELS[0], tokens) is INTERPRETER


def test_names_tell_tiles_apart():
    values = [
        *(make_tiles(block_m, dynamic=dynamic) for block_m in HEIGHTS for dynamic in (True, False)),
        make_tiles(64, swap=True, small_swap=False),
        make_tiles(64, small_swap=True),
        make_tiles(64, swap=True),
        make_tiles(64, swap=True, bulk=True),
        replace(make_tiles(64), down=INTERPRETER.down),
        *(choose.few_tiles(2, hidden, ffn, 1) for hidden, ffn in ((4096, 14336), (3584, 14336), (4096, 2560))),
    ]
    assert len({str(value) for value in values}) == len(values)
    assert all(isinstance(value, (FastTiles, FewTiles)) for value in values)


@pytest.mark.parametrize(("offset", "hidden"), [(0, 64), (1, 64), (8, 64), (0, 60)])
def test_weights_that_no_descriptor_takes_go_without_bulk_copies(offset, hidden, device):
    """A view into a larger buffer may begin anywhere, and rows may have any length."""
    tiles = make_tiles(32, swap=True, bulk=True)
    if needs_bulk_engine(tiles):
        pytest.skip("bulk copies need compute capability 9")
    layer = make_layer(device, tokens=6, experts=4, top_k=2, hidden=hidden, ffn=32)
    gate_up = layer.weights.gate_up()
    buffer = torch.empty(gate_up.numel() + offset, dtype=gate_up.dtype, device=device)
    moved = buffer[offset:].view(gate_up.shape).copy_(gate_up)
    assert tiles.fitting(moved, layer.weights.down()).gate_up.bulk == (offset % 8 == 0 and hidden % 8 == 0)
    router, _, down, *rest = layer.parameters
    assert torch.equal(fast_moe(layer.x, router, moved, down, *rest, tiles=tiles), layer.fast(tiles=tiles))
