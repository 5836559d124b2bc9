"""Which tiles `fast` takes: those of the GPU's tuned table (tuned/), else by a heuristic, whose tiles are here."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..target import MORE_WARPS, Target, target_of
from .tile_types import (
    JOINED_TOKENS,
    AnyTiles,
    FastTile,
    FastTiles,
    FewTile,
    FewTiles,
    JoinedTile,
    JoinedTiles,
    steps_of,
)
from .tiled import TILE
from .tuned import tuned_tiles

INTERPRETER = FastTiles(64, FastTile(256, 256, 4, 1, 256, 1), FastTile(256, 256, 4, 1, 256, 1))
"""In Triton's interpreter time goes with the number of programs, not with their size."""
SMALL_MEMORY = FastTiles(64, FastTile(64, 64, 4, 2, 64, 2), FastTile(128, 64, 4, 2, 64, 2))
"""Where a program has less than 150 KiB of shared memory: MI300X and consumer cards."""
MEDIUM_MEMORY = FastTiles(64, FastTile(64, 64, 4, 4, 128, 3), FastTile(128, 64, 4, 4, 128, 3))
"""Where it has less than 220 KiB: A100 and MI350."""
LIGHT = FastTile(64, 64, 4, 4, 128, 3)
"""gate and up, up to 48 rows an expert on average. Long: of many steps."""
LIGHTEST = FastTile(32, 64, 4, 4, 128, 4, swap=True, small_swap=True)
"""gate and up, up to 4 rows an expert on average: programs that end sooner."""
LIGHT_LONG = FastTile(64, 128, 4, 4, 128, 4, swap=True, small_swap=True)
LIGHT_DOWN = FastTile(128, 64, 4, 4, 64, 5, swap=True, small_swap=True)
LIGHT_DOWN_LONG = FastTile(128, 128, 8, 4, 128, 4, swap=True, small_swap=True)
LIGHT_DOWN_LONG_SM100 = FastTile(128, 128, 4, 4, 128, 4, swap=True, small_swap=True)
"""With 8 warps Triton 3.6 spills there, in float16."""
MIDDLE = FastTile(64, 64, 4, 3, 64, 3, swap=True, small_swap=True)
"""For few and large experts, whose hot ones need one tall block rather than several that read the same weights."""
HEAVY = FastTile(128, 64, 8, 4, 64, 4, swap=True, small_swap=True)
HEAVY_BULK = FastTile(128, 64, 8, 4, 64, 4, small_swap=True, bulk=True)
HEAVY_DOWN = FastTile(128, 64, 8, 5, 64, 5, swap=True, small_swap=True)
JOINED = JoinedTiles(JoinedTile(32, 128, 3), JoinedTile(64, 128, 3))
"""Three programs on a multiprocessor, each with few loads in flight."""
JOINED_FULLER = JoinedTiles(JoinedTile(64, 64, 5), JoinedTile(128, 64, 5))
"""Above 16 tokens of small experts."""
JOINED_SHORT = JoinedTiles(JoinedTile(32, 128, 3), JoinedTile(128, 64, 3))
"""Where sums of down are short, as in most shards of small experts: whole steps, and programs as long as elsewhere."""
JOINED_SHORT_LONG = JoinedTiles(JoinedTile(16, 256, 3), JoinedTile(128, 64, 3))
"""The same where gate and up sum over `LONG` columns, up to 8 tokens: more programs where few experts have work."""
JOINED_SHORT_LONG_FULLER = JoinedTiles(JoinedTile(32, 128, 3), JoinedTile(256, 64, 2))
"""The same above 16 tokens, where down has by far the most programs."""
SHORT = 384
SHORT_FULLER = 512
"""The longest sums of down that these serve, up to 16 tokens and above."""
SPLITS = 4
"""Parts of the sums of down where they are long: a program of all steps would be one of few, and the last of them would
run nearly alone."""
LONG_JOINED_TOKENS = 16
"""The most tokens of the joined path where sums of down are long."""
ONE_GRID_LIGHTEST = FastTiles(
    64, FastTile(32, 64, 4, 4, 128, 3, True, True), FastTile(64, 64, 4, 4, 128, 3, True, True), one_grid=True
)
"""Up to `ONE_GRID_ROWS` rows an expert on average, where both GEMMs share a grid: three programs a multiprocessor."""
ONE_GRID_ROWS = 6
ONE_GRID_FFN = 256
"""The least ffn for which down has steps enough for these tiles."""
FEW_SMALL = 2**21
"""The most weights of a small expert's matrix, of which more tokens take the output-centric path."""
FEW_WEIGHTS = 3 * 2**22
"""The most weights of an expert's matrix for which more than one token takes it where there is no joined path, and for
which the path with a schedule has one grid: beyond, and where gate and up sum over `LONG` columns, they need so much
shared memory that down, which has as much to itself then, runs one program where it had two."""
FEW_AT_ONCE = 1536
"""Up to so many programs, gate and up read a whole row by four warps; of more, single warps are ahead (NOTES)."""
LONG = 6144
"""Summed dimension from which a GEMM has so many steps that wider ones pay."""


def choose_tiles(
    device: torch.device,
    num_experts: int,
    top_k: int,
    hidden_dim: int,
    ffn_dim: int,
    tokens: int,
    in_tiles: bool = False,
) -> AnyTiles:
    """The measured tiles for this device, layer and batch where there are such, else `heuristic_tiles`.

    in_tiles: of weights that are `tiled`. Tables are measured without: of their tiles those serve whose steps are whole
    tiles, and of a few tokens gate and up have `few_gate_up_in_tiles` instead. Raises ValueError if the device's table
    cannot be read.
    """
    if device.type == "cpu":
        return INTERPRETER
    shape = (num_experts, top_k, hidden_dim, ffn_dim)
    measured: AnyTiles | None = tuned_tiles(device, shape, tokens)
    if measured and in_tiles:
        measured = _over_tiled(measured, hidden_dim)
        if any(step % TILE for step in steps_of(measured)):
            measured = None
    if measured:
        return measured
    tiles = heuristic_tiles(target_of(device), *shape, tokens)
    return _over_tiled(tiles, hidden_dim) if in_tiles else tiles


def _over_tiled(tiles: AnyTiles, hidden_dim: int) -> AnyTiles:
    """The tiles over `tiled` weights."""
    if not isinstance(tiles, FewTiles):
        return tiles
    stages = min(tiles.down.stages, 4) if MORE_WARPS else tiles.down.stages
    return FewTiles(few_gate_up_in_tiles(hidden_dim), replace(tiles.down, stages=stages))


def invariant_tiles(device: torch.device, shape: tuple[int, int, int, int]) -> FastTiles:
    """One tile for all blocks of a layer in any batch. shape: (num_experts, top_k, hidden_dim, ffn_dim)."""
    tiles = INTERPRETER if device.type == "cpu" else row_block_tiles(target_of(device), *shape, tokens=1)
    return replace(tiles, dynamic=False)


def heuristic_tiles(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int
) -> AnyTiles:
    """Tiles by the mean load of an expert, which is all that the host knows; the GPU does the rest block by block."""
    joins = may_join(target, tokens) and (ffn_dim < LONG or tokens <= LONG_JOINED_TOKENS)
    few = few_tokens(num_experts, hidden_dim, ffn_dim)
    if tokens <= (few_beside_joined(num_experts, hidden_dim, ffn_dim) if joins else few):
        return few_tiles(top_k, hidden_dim, ffn_dim, tokens, target.nvidia_major < 10)
    if joins and ffn_dim >= LONG:
        whole = (parts for parts in (SPLITS, SPLITS // 2) if ffn_dim % (parts * JOINED.down.step) == 0)
        return replace(JOINED, splits=next(whole, 1))
    if joins:
        return joined_tiles(hidden_dim, ffn_dim, tokens)
    if target.nvidia_major != 9 or hidden_dim * ffn_dim > FEW_WEIGHTS or hidden_dim >= LONG:
        return row_block_tiles(target, num_experts, top_k, hidden_dim, ffn_dim, tokens)
    if tokens * top_k <= ONE_GRID_ROWS * num_experts and ffn_dim >= ONE_GRID_FFN:
        return ONE_GRID_LIGHTEST
    tiles = row_block_tiles(target, num_experts, top_k, hidden_dim, ffn_dim, tokens)
    return replace(tiles, one_grid=tiles.gate_up.num_warps == tiles.down.num_warps)


def joined_tiles(hidden_dim: int, ffn_dim: int, tokens: int) -> JoinedTiles:
    """The joined path's, where sums of down are not long enough to be split."""
    if ffn_dim <= SHORT and hidden_dim >= LONG and tokens <= 8:
        return JOINED_SHORT_LONG
    if ffn_dim <= SHORT and hidden_dim >= LONG and tokens > 16:
        return JOINED_SHORT_LONG_FULLER
    if ffn_dim <= (SHORT_FULLER if tokens > 16 else SHORT):
        return JOINED_SHORT
    return JOINED_FULLER if tokens > 16 and hidden_dim * ffn_dim <= FEW_SMALL else JOINED


def may_join(target: Target, tokens: int) -> bool:
    """Whether the joined path may serve so many tokens. It was measured on Hopper alone."""
    return target.nvidia_major == 9 and tokens <= JOINED_TOKENS


def few_beside_joined(num_experts: int, hidden_dim: int, ffn_dim: int) -> int:
    """As `few_tokens`, where the joined path is the other one."""
    if hidden_dim * ffn_dim > FEW_SMALL or num_experts < 32:
        return 1
    return 3 if num_experts >= 128 else 2


def few_tokens(num_experts: int, hidden_dim: int, ffn_dim: int) -> int:
    """The most tokens for which the output-centric path wins where there is no joined path: those of many experts
    seldom share one, and what they share comes from L2 the second time, as long as it is small."""
    if hidden_dim * ffn_dim <= FEW_SMALL and num_experts >= 64:
        return 4 if num_experts >= 128 else 3
    return 2 if num_experts >= 32 and hidden_dim * ffn_dim <= FEW_WEIGHTS else 1


def few_tiles(top_k: int, hidden_dim: int, ffn_dim: int, tokens: int, has_registers: bool = True) -> FewTiles:
    """For a few tokens, where launches and their gaps are what costs: narrow programs, with steps on their way.

    has_registers: False where the compiler runs out of them at more than 512 weights a row.
    """
    if hidden_dim >= 4096:
        gate_up = FewTile(1, 2048, 4, 2)
    elif hidden_dim > 2048:
        gate_up = FewTile(2, 1024, 2, 2)
    elif tokens * top_k * ffn_dim <= FEW_AT_ONCE:
        gate_up = FewTile(1, 2048, 4)
    else:
        gate_up = FewTile(1, 512, 1, 2)
    if ffn_dim < 1024:
        # Up to two programs a multiprocessor leave each the registers for more steps on their way.
        alone = tokens * hidden_dim <= 2048 and ffn_dim < 512
        return FewTiles(gate_up, FewTile(8, 256, 4, 8 if alone else 6))
    if ffn_dim % 1024 == 0:
        return FewTiles(gate_up, FewTile(4, 1024 if has_registers else 512, 8 if MORE_WARPS else 4, 4))
    # More steps on their way where there are few of them, or the last one is not whole.
    return FewTiles(gate_up, FewTile(8, 512, 4, 4 if ffn_dim % 512 == 0 and ffn_dim > 2048 else 6))


def few_gate_up_in_tiles(hidden_dim: int) -> FewTile:
    """Gate and up for a few tokens of `tiled` weights, of which a row is in pieces of 128 bytes."""
    if hidden_dim >= LONG:
        return FewTile(1, 2048, 4, 2)
    if hidden_dim <= 2048:
        return FewTile(1, 512, 1, 2)
    return FewTile(1, 512, 1, 4) if hidden_dim < 4096 and hidden_dim % 512 == 0 else FewTile(2, 512, 2, 2)


def row_block_tiles(
    target: Target, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int
) -> FastTiles:
    """The tiles of the path with a schedule, however few the tokens."""
    shared = target.shared_memory_bytes
    if shared < 150 * 1024:
        return SMALL_MEMORY
    if shared < 220 * 1024:
        return MEDIUM_MEMORY
    load = tokens * top_k / num_experts
    if load > 48:
        # A descriptor needs rows of whole 16 bytes. For sm_100 Triton 3.9 does not compile low blocks of bulk copies.
        bulk = target.has_bulk_copies and target.nvidia_major < 10 and hidden_dim % 8 == 0
        return FastTiles(192, HEAVY_BULK if bulk else HEAVY, HEAVY_DOWN)
    if load > 8 and ffn_dim >= LONG:
        return FastTiles(160, MIDDLE, HEAVY_DOWN)
    down_long = LIGHT_DOWN_LONG_SM100 if target.nvidia_major >= 10 else LIGHT_DOWN_LONG
    light = LIGHTEST if load <= 4 and target.nvidia_major == 9 else LIGHT
    return FastTiles(
        64,
        LIGHT_LONG if hidden_dim >= LONG else light,
        down_long if ffn_dim >= LONG else LIGHT_DOWN,
    )
