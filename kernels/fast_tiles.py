"""Tiles of `fast`, declared in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class FastTile:
    """A kernel with full tiles [block_m, block_n] in steps of block_k, and 16-row tiles in steps of small_k.

    block_m: 16, 64 or 128, the most rows of a block; stages and small_stages: loads in flight; num_warps: of both.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    stages: int
    small_k: int
    small_stages: int

    def constants(self) -> dict[str, Any]:
        return {
            "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "STAGES": self.stages,
            "SMALL_K": self.small_k, "SMALL_STAGES": self.small_stages, "num_warps": self.num_warps,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.block_m}x{self.block_n}x{self.block_k}/s{self.stages}+16x{self.block_n}x{self.small_k}"
            f"/s{self.small_stages}/w{self.num_warps}"
        )


@dataclass(frozen=True)
class FastTiles:
    """The tiles of both GEMMs; their block_m must be the same, because they share the table of row blocks."""

    gate_up: FastTile
    down: FastTile

    def __post_init__(self) -> None:
        if self.gate_up.block_m != self.down.block_m:
            raise ValueError(f"gate_up and down must share block_m, got {self.gate_up.block_m}, {self.down.block_m}")

    @property
    def block_m(self) -> int:
        return self.gate_up.block_m


INTERPRETER = FastTiles(FastTile(64, 256, 256, 4, 1, 256, 1), FastTile(64, 256, 256, 4, 1, 256, 1))
"""In Triton's interpreter time goes with the number of programs, not with their size."""
FEW_ROWS = FastTiles(FastTile(16, 32, 256, 4, 3, 256, 3), FastTile(16, 64, 256, 4, 3, 256, 3))
SOME_ROWS = FastTiles(FastTile(64, 64, 64, 4, 4, 128, 3), FastTile(64, 128, 64, 4, 4, 128, 3))
MANY_ROWS = FastTiles(FastTile(128, 128, 64, 8, 4, 64, 4), FastTile(128, 256, 64, 8, 4, 64, 4))


def choose_tiles(
    device: torch.device, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int
) -> FastTiles:
    """Tiles by the mean load of an expert, which is all that the host knows; the GPU does the rest block by block."""
    if device.type == "cpu":
        return INTERPRETER
    mean_load = tokens * top_k / num_experts
    if mean_load <= 4:
        return FEW_ROWS
    return SOME_ROWS if mean_load <= 48 else MANY_ROWS
