"""Tile shapes of the grouped GEMMs: the table of defaults by shared memory, declared in one place.

The tile height is not among them: the paper fixes it at 64 rows (`BLOCK_M`), and the block schedule is made for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..target import target_of

BLOCK_M = 64
"""Rows of a block of the schedule, all of one expert."""
GROUP_M = 16
"""Most row blocks of an expert that run side by side on one weight tile before the next column of tiles."""


@dataclass(frozen=True)
class GemmTile:
    """One program computes [BLOCK_M, block_n] of the output in steps of block_k, with num_warps and num_stages."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        for name in ("block_n", "block_k", "num_warps", "num_stages"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a positive int")
        for name in ("block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            if value & (value - 1) or (name != "num_warps" and value < 16):
                raise ValueError(f"{name}={value}: must be a power of two, and a block at least 16")

    def __str__(self) -> str:
        return f"{BLOCK_M}x{self.block_n}x{self.block_k}/w{self.num_warps}/s{self.num_stages}"


@dataclass(frozen=True)
class Tiles:
    """fused: gate and up in one kernel, each [BLOCK_M, block_n]; gate_up: one of the two alone; down: the way back."""

    fused: GemmTile
    gate_up: GemmTile
    down: GemmTile


INTERPRETER = Tiles(GemmTile(256, 256, 4, 1), GemmTile(256, 256, 4, 1), GemmTile(256, 256, 4, 1))
"""In Triton's interpreter time goes with the number of programs, not with their size."""

BY_SHARED_MEMORY: tuple[tuple[int, Tiles], ...] = (
    # H100, H200 and B200: 227 KiB.
    (220 * 1024, Tiles(GemmTile(64, 64, 4, 4), GemmTile(128, 64, 4, 4), GemmTile(128, 64, 4, 4))),
    # A100: 163 KiB; MI350: 160 KiB.
    (150 * 1024, Tiles(GemmTile(64, 64, 4, 4), GemmTile(128, 64, 4, 4), GemmTile(128, 64, 4, 4))),
    # RTX cards: 99 KiB. MI300X: 64 KiB, all of it for one program.
    (60 * 1024, Tiles(GemmTile(64, 64, 4, 2), GemmTile(128, 64, 4, 2), GemmTile(128, 64, 4, 2))),
)
"""(least shared memory that a program may take, in bytes, tiles), the largest first."""


def default_tiles(shared_memory_bytes: int | None) -> Tiles:
    """The tiles for a GPU on which one program may take that much shared memory; None is Triton's interpreter.

    Raises ValueError for less than any tile of the table needs.
    """
    if shared_memory_bytes is None:
        return INTERPRETER
    for least, tiles in BY_SHARED_MEMORY:
        if shared_memory_bytes >= least:
            return tiles
    raise ValueError(
        f"{shared_memory_bytes} bytes of shared memory a program: the smallest tiles are made for "
        f"{BY_SHARED_MEMORY[-1][0]}; pass tiles= of your own"
    )


def device_tiles(device: torch.device) -> Tiles:
    """The default tiles of a device."""
    return default_tiles(None if device.type == "cpu" else target_of(device).shared_memory_bytes)
