"""Which tiles `fast` takes over packed weights: those of the GPU's tuned table (tuned/), else by a heuristic."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..formats import Packed
from ..formats.fp8_block import Fp8Block
from ..formats.int4 import Int4
from ..formats.mxfp4 import Mxfp4
from ..target import INTERPRETER, MORE_WARPS, Target, target_of
from .choose import FEW_SMALL, FEW_WEIGHTS, LONG, few_tiles, few_tokens, may_join, row_block_tiles
from .tile_types import (
    JOINED_TOKENS,
    AnyTiles,
    FastTile,
    FastTiles,
    FewTile,
    FewTiles,
    JoinedTile,
    JoinedTiles,
)
from .tuned import tuned_tiles

SMALL = 2**24
"""The most weights of an expert's matrix for which one token takes the output-centric path on a GPU with fp8 units."""
FP8_JOINED = JoinedTiles(JoinedTile(128, 128, 3), JoinedTile(128, 128, 3))
W4_JOINED = JoinedTiles(JoinedTile(64, 128, 4), JoinedTile(128, 128, 4))
W4_JOINED_TOKENS = 16
"""The most tokens of the joined path over four bits: for more a tile would have 32 rows, and lose."""
FP8_JOINED_TOKENS = 8
"""In fp8_block, of experts that are not small; small ones take it up to `JOINED_TOKENS`."""
FP8_ONE_GRID_ROWS = 8
"""Up to so many rows an expert on average both GEMMs of small experts share a grid in fp8_block, of low tiles."""
FP8_LOW_ROWS = 16
"""Up to so many the tiles are as low where ffn is short, with a grid for each GEMM."""
FEW_ROWS = 4
"""Up to so many rows an expert on average, all blocks have 16: the tiles of taller ones would hardly be met."""


def scheduled_tiles(
    kind: type[Packed] | None, target: Target, shape: tuple[int, int, int, int], tokens: int
) -> FastTiles:
    """The tiles of the path with a schedule, for a layer that cannot take the one it would get. kind: of its weights,
    None for 16 bits."""
    if kind is None:
        return row_block_tiles(target, *shape, tokens)
    if kind is Fp8Block:
        return fp8_scheduled(target, *shape, tokens, None)
    return w4_tiles(target, tokens * shape[1] / shape[0])


def choose_packed_tiles(
    device: torch.device,
    kind: type[Packed],
    shape: tuple[int, int, int, int],
    tokens: int,
    activations: str | None = None,
) -> AnyTiles:
    """The measured tiles for this device, layer, format and batch where there are such, else `format_tiles`.

    A table is for activations that the caller leaves open. Raises ValueError if the device's table cannot be read.
    """
    found = None if device.type == "cpu" or activations else tuned_tiles(device, shape, tokens, kind.name)
    return found or format_tiles(kind, target_of(device), shape, tokens, activations)


def default_activations(kind: type[Packed], target: Target) -> str:
    """``a8`` for fp8_block where the GPU multiplies e4m3, else ``a16``."""
    return "a8" if kind is Fp8Block and target.has_fp8 else "a16"


def format_tiles(
    kind: type[Packed], target: Target, shape: tuple[int, int, int, int], tokens: int, activations: str | None
) -> AnyTiles:
    """The tiles for a format. shape: (num_experts, top_k, hidden_dim, ffn_dim); activations: as in `fp8_tiles`."""
    if kind is Fp8Block:
        return fp8_tiles(target, *shape, tokens, activations)
    num_experts, top_k, hidden_dim, ffn_dim = shape
    if activations == "a8":
        return w4_a8_tiles(kind, target, tokens * top_k / num_experts)
    joins = may_join(target, tokens) and tokens <= W4_JOINED_TOKENS
    few = 2 if hidden_dim * ffn_dim <= FEW_WEIGHTS else 1
    if kind is Int4 and hidden_dim * ffn_dim <= FEW_SMALL and not joins:
        few = 4
    if tokens <= few and target.nvidia_major and hidden_dim % 16 == 0 and ffn_dim % 8 == 0:
        return _w4_few(kind, target, tokens * hidden_dim, tokens * top_k * ffn_dim)
    if joins:
        return W4_JOINED
    return w4_tiles(target, tokens * top_k / num_experts)


def _w4_few(kind: type[Packed], target: Target, outputs: int, neurons: int) -> FewTiles:
    """For a token or two of weights that can be prepared: as few rows a program as let all programs run at once, and
    for which there are registers. Down, which has so many fewer rows, takes 16 warps on Hopper, else a step ahead with
    8."""
    hopper = target.nvidia_major == 9
    widest = 32 if hopper and kind is not Mxfp4 else 16
    gate_up = FewTile(8 if neurons <= 800 * 8 else 16 if neurons <= 800 * 16 else widest, 512, 4)
    if hopper and outputs <= 264 * 16:
        return FewTiles(gate_up, FewTile(8 if outputs <= 264 * 8 else 16, 2048, 16))
    return FewTiles(gate_up, FewTile(16 if hopper else 8, 1024, 8))


def w4_tiles(target: Target, load: float) -> FastTiles:
    """The tiles for four bits, by the mean load of an expert: the taller a tile, the fewer programs a multiprocessor
    holds at once, and blocks of taller tiles than most need slow all of them down."""
    if target == INTERPRETER:
        tile = FastTile(128, 256, 4, 1, 256, 1, swap=True, small_swap=True)
        return FastTiles(64, tile, tile)
    block_m = 16 if load <= 8 else 32 if load <= 24 else 48
    if target.is_amd:
        return FastTiles(block_m if load <= 64 else 64, _swapped(64, 4, 2), _swapped(64, 4, 2))
    if target.nvidia_major != 9:  # mma.sync and tcgen05.mma leave fewer registers to what is unpacked
        down = _swapped(128, 4 if target.nvidia_major >= 10 else 8, 3)  # Triton 3.9 spills there with 8 warps
        return FastTiles(min(block_m, 32), _swapped(64, 8, 3), down)
    if load > 48:
        return FastTiles(96, _swapped(64, 4, 3), _swapped(128, 4, 3))
    return FastTiles(block_m, _swapped(64, 4, 4), _swapped(128, 4, 4))


def w4_a8_tiles(kind: type[Packed], target: Target, load: float) -> FastTiles:
    """The tiles for four bits with 8-bit activations, by the mean load of an expert. int4, whose products are scaled
    apart, has no registers for the tallest."""
    if target == INTERPRETER:
        tile = FastTile(128, 128, 4, 1, 128, 1, swap=True, small_swap=True)
        return FastTiles(64, tile, tile)
    block_m = 16 if load <= 8 else 32 if load <= 24 else 48 if load <= 48 or kind is Int4 else 96
    return FastTiles(block_m, _swapped(64, 4, 4), _swapped(128, 4, 4))


def fp8_tiles(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int, activations: str | None
) -> AnyTiles:
    """The tiles for fp8_block.

    activations: None where the caller leaves them open. Then a few tokens take the output-centric path with 16-bit
    activations, as they do wherever 8 bits are not to be had: unpacking costs less there than the launches.
    """
    native = default_activations(Fp8Block, target) == "a8"
    small = native and hidden_dim * ffn_dim <= SMALL
    if activations == "a16" or (activations is None and (small or not native)):
        if small and tokens <= _fp8_few_tokens(num_experts, hidden_dim, ffn_dim):
            return _fp8_few(hidden_dim, ffn_dim, tokens)
        if not small and tokens <= few_tokens(num_experts, hidden_dim, ffn_dim):
            plain = few_tiles(top_k, hidden_dim, ffn_dim, tokens, target.nvidia_major < 10)
            # The scales take a part of its registers.
            return replace(plain, down=replace(plain.down, block_n=4, stages=4))
    if activations != "a16" and tokens <= _fp8_joined_tokens(target, hidden_dim * ffn_dim):
        return FP8_JOINED
    rows = tokens * top_k / num_experts
    low = target.nvidia_major == 9 and rows <= (FP8_LOW_ROWS if ffn_dim <= 512 else FP8_ONE_GRID_ROWS)
    if activations != "a16" and low and hidden_dim * ffn_dim <= FEW_SMALL:
        return FastTiles(32, _swapped(128, 4, 3), _swapped(128, 4, 3), one_grid=rows <= FP8_ONE_GRID_ROWS)
    return fp8_scheduled(target, num_experts, top_k, hidden_dim, ffn_dim, tokens, activations)


def fp8_scheduled(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int, activations: str | None
) -> FastTiles:
    """The tiles of the path with a schedule for fp8_block, by the mean load of an expert. With 8-bit activations a
    column of gate and up is a block of 128, for which down finds one scale per row."""
    slots = tokens * top_k
    block_m = 16 if slots <= FEW_ROWS * num_experts else 64
    if target == INTERPRETER:
        tile = FastTile(128, 256, 4, 1, 256, 1)
        return FastTiles(64, tile, tile)
    if (activations or default_activations(Fp8Block, target)) == "a8":
        if target.nvidia_major >= 10:  # taller tiles spill there; so do more loads in flight, with Triton 3.6
            return FastTiles(16, _swapped(128, 8, 3), _swapped(128, 4, 4))
        return FastTiles(block_m, _a8_gate_up(hidden_dim, block_m), _a8_down(ffn_dim, block_m))
    if target.nvidia_major >= 9:
        return FastTiles(block_m, _swapped(64, 4, 4), _swapped(64, 4, 4))
    stages = 3 if target.nvidia_major else 2
    return FastTiles(64, FastTile(64, 128, 4, stages, 128, stages), FastTile(64, 128, 4, stages, 128, stages))


def _fp8_few_tokens(num_experts: int, hidden_dim: int, ffn_dim: int) -> int:
    """As `few_tokens`: more of them, as the other paths quantise x in a launch of its own."""
    weights = hidden_dim * ffn_dim
    if (num_experts >= 128 and weights <= FEW_WEIGHTS) or (num_experts >= 64 and weights <= FEW_SMALL):
        return 4
    return few_tokens(num_experts, hidden_dim, ffn_dim)


def _fp8_joined_tokens(target: Target, weights: int) -> int:
    """The most tokens of the joined path, by the weights of a matrix."""
    if not may_join(target, 1) or weights > FEW_WEIGHTS:
        return 0
    return JOINED_TOKENS if weights <= FEW_SMALL else FP8_JOINED_TOKENS


def _fp8_few(hidden_dim: int, ffn_dim: int, tokens: int) -> FewTiles:
    """gate and up through registers; down of short sums in one step at one token, in short steps at many."""
    short = FewTile(8, 512, 8 if MORE_WARPS else 4)
    gate_up = short if hidden_dim <= 2048 else FewTile(8, 1024, 4)
    if tokens > 2 and ffn_dim <= 1024:
        return FewTiles(gate_up, FewTile(16, 256, 4, 4))
    if ffn_dim <= 512:
        return FewTiles(gate_up, replace(short, stages=4))
    # Of so many steps that a loop holds a part of them, 16 rows spill with some compilers.
    rows, step = 16 if ffn_dim <= 2048 else 8, 1024 if ffn_dim <= 1024 and tokens == 1 else 512
    return FewTiles(gate_up, FewTile(rows, step, 8, 4))


def _a8_gate_up(hidden_dim: int, block_m: int) -> FastTile:
    """In low blocks, two blocks of columns a step: neighbours in memory are read together. Taller ones need eight warps
    for their registers."""
    if block_m > 16:
        return _swapped(128, 8, 4 if hidden_dim >= LONG else 5)
    return _swapped(128, 4, 3, 256)


def _a8_down(ffn_dim: int, block_m: int) -> FastTile:
    """Short sums with all of it, or nearly, in flight."""
    if block_m > 16:
        return _swapped(128, 4, 4)
    if ffn_dim < 1024:
        return _swapped(128, 4, 2, 256)
    return _swapped(128, 8, 5) if ffn_dim < 2048 else _swapped(128, 4, 3, 256)


def _swapped(block_n: int, num_warps: int, stages: int, step: int = 128) -> FastTile:
    return FastTile(block_n, step, num_warps, stages, step, stages, swap=True, small_swap=True)
