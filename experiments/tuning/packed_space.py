"""The tiles that `make tune` tries for packed weights, by format, stage and height of blocks.

A step is 128 columns in all of them, and the weights are the left operand. Found by hand around the heuristics of
kernels/fast/choose_packed.py on an H200.
"""

from __future__ import annotations

from tritonmoe_bench.kernels.fast.tile_types import FastTile, FewTile

MANY = float("inf")
LOADS = {16: (0, 16), 32: (4, 48), 48: (16, 96), 64: (8, MANY), 96: (32, MANY)}
"""By block height, the range of mean rows per expert in which it is tried."""


def _swapped(block_n: int, num_warps: int, *stages: int, step: int = 128) -> tuple[FastTile, ...]:
    return tuple(FastTile(block_n, step, num_warps, n, step, n, swap=True, small_swap=True) for n in stages)


Tiles = dict[str, dict[int, tuple[FastTile, ...]]]
FP8_LOW = (*_swapped(128, 8, 4, 6), *_swapped(128, 8, 3, step=256), *_swapped(128, 4, 3, step=256))
FP8_TALL = (*_swapped(128, 8, 3, 4, 5), *_swapped(128, 8, 2, step=256))
FP8_DOWN = (
    *_swapped(128, 4, 4, 6), *_swapped(128, 8, 5), *_swapped(128, 4, 2, 3, step=256), *_swapped(64, 4, 4),
    *_swapped(64, 4, 3, step=256), *_swapped(256, 8, 3), *_swapped(256, 8, 3, step=256),
)  # fmt: skip
FP8_DOWN_TALL = (
    *_swapped(128, 4, 3, 4, 6), *_swapped(128, 8, 4), *_swapped(128, 4, 2, 3, step=256), *_swapped(256, 8, 4),
)  # fmt: skip
FP8: Tiles = {
    "gate_up": {16: FP8_LOW, 32: FP8_TALL, 64: FP8_TALL},
    "down": {16: FP8_DOWN, 32: FP8_DOWN_TALL, 64: FP8_DOWN_TALL},
}
FOUR_BITS: Tiles = {
    "gate_up": dict.fromkeys((16, 32, 48, 64, 96), _swapped(64, 4, 3, 4, 5)),
    "down": dict.fromkeys((16, 32, 48, 64, 96), (*_swapped(128, 4, 3, 4, 5), *_swapped(64, 4, 4, 5))),
}
FP8_FEW = {
    "few_gate_up": (
        FewTile(4, 512, 2), FewTile(4, 512, 2, 2), FewTile(8, 512, 4), FewTile(8, 512, 4, 2), FewTile(8, 512, 8),
        FewTile(8, 1024, 4), FewTile(8, 1024, 4, 2), FewTile(16, 512, 4, 2),
    ),
    "few_down": (
        FewTile(4, 512, 2, 4), FewTile(8, 1024, 8, 4), FewTile(4, 512, 4, 4), FewTile(8, 512, 4, 4),
        FewTile(4, 1024, 4, 4), FewTile(4, 256, 2, 4), FewTile(8, 256, 4, 4), FewTile(4, 512, 4, 8),
        FewTile(8, 512, 8, 8), FewTile(16, 512, 8, 4),
    ),
}  # fmt: skip

FOUR_BITS_FEW: dict[str, tuple[FewTile, ...]] = {
    "few_gate_up": (
        FewTile(8, 512, 4), FewTile(16, 512, 4), FewTile(32, 512, 4), FewTile(8, 1024, 8), FewTile(16, 1024, 8),
    ),
    "few_down": (
        FewTile(8, 2048, 16), FewTile(16, 2048, 16), FewTile(16, 1024, 8),
        FewTile(32, 1024, 8),
    ),
}  # fmt: skip


def packed_tiles(quant: str, load: float) -> dict[str, dict[int, tuple[FastTile, ...]]]:
    """Tiles by stage and height, for so many rows an expert on average."""
    heights = [height for height, (least, most) in LOADS.items() if least <= load <= most]
    every = FP8 if quant == "fp8_block" else FOUR_BITS
    return {
        stage: {height: by_height[height] for height in heights if height in by_height}
        for stage, by_height in every.items()
    }


def packed_few_tiles(quant: str) -> dict[str, tuple[FewTile, ...]]:
    """Tiles of the output-centric path by stage."""
    return FP8_FEW if quant == "fp8_block" else FOUR_BITS_FEW
