"""The tiles that `make tune` tries for packed weights, by format, stage and height of blocks.

A step is 128 columns in all of them, and the weights are the left operand. Found by hand around the heuristics of
kernels/fast/packed.py on an H200.
"""

from __future__ import annotations

from tritonmoe_bench.kernels.fast.tile_types import FastTile, FewTile

Loads = dict[int, tuple[float, float]]
MANY = float("inf")
LOADS: Loads = {16: (0, 16), 32: (4, 48), 64: (8, MANY)}
"""By block height, the range of mean rows per expert in which it is tried."""
LOW_LOADS: Loads = {16: (0, 16), 32: (4, MANY)}
"""For formats whose taller tiles have gone wrong (kernels/NOTES.md, Traps)."""


def _swapped(block_n: int, num_warps: int, *stages: int) -> tuple[FastTile, ...]:
    return tuple(FastTile(block_n, 128, num_warps, n, 128, n, swap=True, small_swap=True) for n in stages)


FP8 = {
    "gate_up": (*_swapped(128, 8, 3, 4, 5, 6), *_swapped(128, 4, 3, 4)),
    "down": (
        *_swapped(128, 4, 3, 4, 6), *_swapped(128, 8, 4, 5), *_swapped(64, 4, 4, 6, 8), *_swapped(256, 8, 3, 4, 6),
    ),
}  # fmt: skip
FOUR_BITS = {
    "gate_up": _swapped(64, 4, 3, 4, 5),
    "down": (*_swapped(128, 4, 3, 4, 5), *_swapped(64, 4, 4, 5)),
}
FP8_FEW = {
    "few_gate_up": (
        FewTile(4, 512, 2), FewTile(2, 1024, 2), FewTile(4, 1024, 4), FewTile(8, 512, 4), FewTile(2, 512, 2),
        FewTile(4, 512, 4), FewTile(8, 512, 8),
    ),
    "few_down": (
        FewTile(4, 512, 4), FewTile(8, 1024, 8), FewTile(4, 512, 2), FewTile(8, 512, 4), FewTile(4, 1024, 4),
        FewTile(2, 1024, 2), FewTile(4, 256, 2), FewTile(8, 256, 4),
    ),
}  # fmt: skip


def packed_tiles(quant: str) -> tuple[dict[str, tuple[FastTile, ...]], Loads]:
    """(tiles by stage, loads by height) of a format."""
    return FP8 if quant == "fp8_block" else FOUR_BITS, LOW_LOADS if quant.startswith("int4") else LOADS


def packed_few_tiles(quant: str) -> dict[str, tuple[FewTile, ...]]:
    """Tiles of the output-centric path by stage; of four bits it has none."""
    return FP8_FEW if quant == "fp8_block" else {}
