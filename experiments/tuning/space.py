"""The tiles that `make tune` tries, declared in one place: by stage, height of blocks, and load of an expert.

The lists for much shared memory were cut down by hand from wider ones, on an H200; those for taller blocks hold every
orientation and both ways of loading. The lists for little shared memory are a guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FastTile, FastTiles, FewTile, FewTiles, JoinedTiles

from ..workload.case import BYTES_PER_ELEMENT, Case
from .packed_space import packed_few_tiles, packed_tiles

GEMMS = ("gate_up", "down")
FEW_GEMMS = ("few_gate_up", "few_down")
"""The stages of both paths, in their order; those of the output-centric path have no block height."""
FEW_TOKENS = 4
"""Up to this many tokens the output-centric path is tried as well."""
MANY = float("inf")
LOADS = {16: (0, 8), 64: (0, 48), 128: (8, MANY), 144: (4, MANY), 160: (4, MANY), 192: (8, MANY)}
"""By block height, the range of mean rows per expert in which it is tried."""
MUCH_SHARED = 220 * 1024
"""The lists of the H200 are tried where one program may take this much shared memory, in bytes."""


@dataclass(frozen=True)
class Candidate:
    """A tile of one stage; block_m: the most rows of its blocks, 0 on the output-centric path."""

    stage: str
    block_m: int
    tile: FastTile | FewTile

    def __str__(self) -> str:
        return f"m{self.block_m} {self.tile}" if self.block_m else str(self.tile)


def _variants(tile: FastTile) -> tuple[FastTile, ...]:
    """Weights or rows as the left operand, by pointers or by bulk copies; up to 16 rows it is always the weights."""
    ways = itertools.product((False, True), (True, False))
    return tuple(replace(tile, swap=swap, small_swap=True, bulk=bulk) for bulk, swap in ways)


NARROW = (
    FastTile(64, 64, 4, 4, 128, 3),
    FastTile(64, 128, 4, 4, 128, 4, swap=True, small_swap=True),
    FastTile(64, 128, 4, 3, 128, 4, swap=True, small_swap=True),
    FastTile(32, 128, 4, 3, 256, 3),
    FastTile(64, 64, 4, 4, 64, 6, swap=True, small_swap=True),
    FastTile(64, 64, 4, 6, 64, 6, swap=True, small_swap=True),
    FastTile(64, 64, 4, 4, 64, 4, swap=True, small_swap=True, bulk=True),
)
TALL = (
    *_variants(FastTile(64, 64, 4, 3, 64, 3)),
    *_variants(FastTile(128, 64, 8, 4, 64, 4)),
)
NARROW_DOWN = (
    FastTile(128, 64, 4, 4, 64, 5, swap=True, small_swap=True),
    FastTile(128, 64, 4, 4, 64, 4, swap=True, small_swap=True, bulk=True),
    FastTile(128, 64, 4, 4, 128, 3),
    FastTile(128, 128, 8, 4, 128, 4, swap=True, small_swap=True),
    FastTile(128, 128, 4, 4, 128, 4),
    FastTile(64, 128, 4, 3, 128, 4),
)
TALL_DOWN = (
    FastTile(128, 64, 4, 3, 64, 3, swap=True, small_swap=True, bulk=True),
    FastTile(128, 64, 4, 3, 64, 4, swap=True, small_swap=True),
    *_variants(FastTile(128, 64, 8, 4, 64, 4)),
    *_variants(FastTile(128, 64, 8, 5, 64, 5)),
    *_variants(FastTile(128, 64, 8, 6, 64, 6)),
    FastTile(256, 64, 8, 3, 64, 3, swap=True, small_swap=True),
    FastTile(256, 64, 8, 3, 64, 3, swap=True, small_swap=True, bulk=True),
)
LITTLE = (
    FastTile(64, 64, 4, 4, 128, 3),
    FastTile(64, 64, 4, 3, 64, 3),
    FastTile(64, 64, 4, 2, 64, 2),
    FastTile(32, 128, 4, 2, 128, 3),
    FastTile(128, 64, 8, 2, 64, 2),
)
LITTLE_DOWN = (
    FastTile(128, 64, 4, 4, 128, 3),
    FastTile(128, 64, 4, 3, 64, 3),
    FastTile(128, 64, 4, 2, 64, 2),
    FastTile(64, 128, 4, 2, 128, 2),
)
TILES: dict[str, dict[int, tuple[FastTile, ...]]] = {
    "gate_up": {
        16: (FastTile(32, 256, 4, 3, 256, 3), FastTile(32, 128, 4, 4, 128, 4)),
        64: NARROW,
        128: TALL,
        144: TALL,
        160: (*TALL, FastTile(64, 64, 4, 3, 64, 4, swap=True, small_swap=True)),
        192: TALL,
    },
    "down": {
        16: (FastTile(128, 128, 4, 4, 128, 4), FastTile(64, 256, 4, 3, 256, 3)),
        64: NARROW_DOWN,
        128: TALL_DOWN,
        144: TALL_DOWN,
        160: TALL_DOWN,
        192: TALL_DOWN,
    },
}
LITTLE_TILES: dict[str, dict[int, tuple[FastTile, ...]]] = {
    "gate_up": {16: (FastTile(32, 128, 4, 3, 128, 3),), 64: LITTLE, 144: LITTLE[2:3]},
    "down": {16: (FastTile(64, 128, 4, 3, 128, 3),), 64: LITTLE_DOWN, 144: LITTLE_DOWN[2:3]},
}
FEW: dict[str, tuple[FewTile, ...]] = {
    "few_gate_up": (
        FewTile(2, 1024, 2), FewTile(4, 512, 2), FewTile(2, 512, 2), FewTile(1, 512, 1, 2), FewTile(1, 2048, 4, 2),
        FewTile(1, 1024, 2), FewTile(2, 2048, 4), FewTile(2, 1024, 2, 2), FewTile(2, 512, 2, 2), FewTile(1, 1024, 2, 2),
        FewTile(4, 1024, 4, 2),
    ),
    "few_down": (
        FewTile(4, 512, 4, 4), FewTile(4, 256, 4, 4), FewTile(8, 256, 4, 4), FewTile(8, 512, 4, 4),
        FewTile(2, 512, 2, 4), FewTile(4, 512, 4, 8), FewTile(4, 256, 4, 8), FewTile(8, 256, 4, 8),
        FewTile(4, 1024, 4, 4), FewTile(4, 1024, 8, 4), FewTile(8, 512, 8, 4),
    ),
}  # fmt: skip


def _fits(tile: FewTile, summed: int) -> bool:
    """Masks take registers: where steps do not divide the summed dimension, some compilers spill beyond 32 a thread."""
    return summed % tile.step == 0 or tile.block_n * tile.step <= 32 * 32 * tile.num_warps


def parts(tiles: AnyTiles) -> tuple[Candidate, ...]:
    """The candidates that whole tiles are made of, gate_up first; none of the joined path, a single launch."""
    if isinstance(tiles, JoinedTiles):
        return ()
    if isinstance(tiles, FewTiles):
        return Candidate(FEW_GEMMS[0], 0, tiles.gate_up), Candidate(FEW_GEMMS[1], 0, tiles.down)
    return Candidate(GEMMS[0], tiles.block_m, tiles.gate_up), Candidate(GEMMS[1], tiles.block_m, tiles.down)


def whole(gate_up: Candidate, down: Candidate, one_grid: bool = False) -> FastTiles | FewTiles:
    """The tiles that two candidates of one path and height make; one_grid: in one grid if they have as many warps."""
    if isinstance(gate_up.tile, FewTile) and isinstance(down.tile, FewTile):
        return FewTiles(gate_up.tile, down.tile)
    assert isinstance(gate_up.tile, FastTile)
    assert isinstance(down.tile, FastTile)
    alike = gate_up.tile.num_warps == down.tile.num_warps
    return FastTiles(gate_up.block_m, gate_up.tile, down.tile, one_grid=one_grid and alike)


def candidates(case: Case, heuristic: AnyTiles, shared_bytes: int, has_bulk: bool) -> list[Candidate]:
    """What is tried for the layer and tokens of a case, the heuristic's own tiles among it unless they are joined.

    shared_bytes: what one program may take; has_bulk: whether the GPU has the engine for bulk copies.
    """
    packed = case.quant != "none"
    found = _packed_candidates(case) if packed else _candidates(case, shared_bytes, has_bulk)
    if case.tokens <= FEW_TOKENS:
        summed = {"few_gate_up": case.hidden_dim, "few_down": case.ffn_dim}
        few = packed_few_tiles(case.quant) if packed else FEW
        found += [
            Candidate(stage, 0, tile) for stage, tiles in few.items() for tile in tiles if _fits(tile, summed[stage])
        ]
    return list(dict.fromkeys([*found, *parts(heuristic)]))


def _candidates(case: Case, shared_bytes: int, has_bulk: bool) -> list[Candidate]:
    load = case.slots / case.num_experts
    found = []
    for stage, by_height in (TILES if shared_bytes >= MUCH_SHARED else LITTLE_TILES).items():
        row_bytes = (case.hidden_dim if stage == "gate_up" else case.ffn_dim) * BYTES_PER_ELEMENT
        for block_m, tiles in by_height.items():
            least, most = LOADS[block_m]
            if least <= load <= most:
                found += [
                    Candidate(stage, block_m, tile)
                    for tile in tiles
                    if not tile.bulk or (has_bulk and row_bytes % 16 == 0)
                ]
    return found


def _packed_candidates(case: Case) -> list[Candidate]:
    by_stage = packed_tiles(case.quant, case.slots / case.num_experts)
    return [
        Candidate(stage, block_m, tile)
        for stage, by_height in by_stage.items()
        for block_m, tiles in by_height.items()
        for tile in tiles
    ]


def heights(found: Iterable[Candidate]) -> list[int]:
    """The heights of blocks in the candidates, without the output-centric path."""
    return sorted({candidate.block_m for candidate in found} - {0})
