"""Tiles of `fast`, declared in one place."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class FastTile:
    """A kernel with full tiles [block_m, block_n] in steps of block_k, and 16-row tiles in steps of small_k.

    block_m: 16, 64 or 128, the most rows of a block; stages and small_stages: loads in flight; num_warps: of both.
    bulk: weights come by the bulk copy engine, through a tensor descriptor; needs compute capability 9, small_k equal
    to block_k and rows of whole 16 bytes.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    stages: int
    small_k: int
    small_stages: int
    bulk: bool = False

    def __post_init__(self) -> None:
        if self.block_m not in (16, 64, 128):
            raise ValueError(f"block_m={self.block_m}: allowed are 16, 64, 128")
        if self.bulk and self.small_k != self.block_k:
            raise ValueError(f"bulk needs small_k equal to block_k={self.block_k}, got {self.small_k}")

    def operand(self, weights: torch.Tensor) -> torch.Tensor | TensorDescriptor:
        """What a kernel takes for weights [experts, n, k]: the tensor, or a descriptor over all their rows."""
        if not self.bulk:
            return weights
        if weights.shape[2] * weights.element_size() % 16:
            raise ValueError(f"bulk tiles need weight rows of whole 16 bytes, got {weights.shape[2]} elements")
        return TensorDescriptor.from_tensor(weights.view(-1, weights.shape[2]), [self.block_n, self.block_k])

    def constants(self) -> dict[str, Any]:
        return {
            "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "STAGES": self.stages,
            "SMALL_K": self.small_k, "SMALL_STAGES": self.small_stages, "BULK": self.bulk,
            "num_warps": self.num_warps,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.block_m}x{self.block_n}x{self.block_k}/s{self.stages}+16x{self.block_n}x{self.small_k}"
            f"/s{self.small_stages}/w{self.num_warps}{'/bulk' if self.bulk else ''}"
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
SMALL_MEMORY = FastTiles(FastTile(64, 64, 64, 4, 2, 64, 2), FastTile(64, 128, 64, 4, 2, 64, 2))
"""Where a program has less than 150 KiB of shared memory: MI300X and consumer cards."""

FEW_GATE_UP = FastTile(16, 32, 256, 4, 3, 256, 3)
FEW_GATE_UP_SHORT = FastTile(16, 32, 128, 4, 4, 128, 4)
"""For so little work that a wide step would leave too few steps to overlap."""
FEW_DOWN = FastTile(16, 128, 128, 4, 4, 128, 4)
FEW_DOWN_LONG = FastTile(16, 64, 256, 4, 3, 256, 3)
SOME_GATE_UP = FastTile(64, 64, 64, 4, 4, 128, 3)
SOME_GATE_UP_LIGHT = FastTile(64, 32, 128, 4, 3, 256, 3)
SOME_DOWN = FastTile(64, 128, 64, 4, 4, 128, 3)
SOME_DOWN_LONG = FastTile(64, 64, 128, 4, 3, 128, 4)
MANY = FastTiles(FastTile(128, 128, 64, 8, 4, 64, 4, bulk=True), FastTile(128, 128, 128, 8, 3, 128, 3, bulk=True))
LONG = 8192
"""ffn dimension from which the down GEMM has so many steps that wider ones pay."""
SHORT = 2048
"""hidden dimension up to which the gate and up GEMMs have few steps."""


def choose_tiles(
    device: torch.device, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int
) -> FastTiles:
    """Tiles by the mean load of an expert, which is all that the host knows; the GPU does the rest block by block."""
    if device.type == "cpu":
        return INTERPRETER
    shared, has_bulk = _capabilities(device)
    if shared < 150 * 1024:
        return SMALL_MEMORY
    slots = tokens * top_k
    load = slots / num_experts
    if load <= 4:
        short = hidden_dim <= SHORT and slots <= 16
        return FastTiles(FEW_GATE_UP_SHORT if short else FEW_GATE_UP, FEW_DOWN_LONG if ffn_dim >= LONG else FEW_DOWN)
    large = shared >= 220 * 1024
    if load <= 48 or not large:
        # The lighter tile spills a register on an A100 at some shapes.
        return FastTiles(
            SOME_GATE_UP_LIGHT if load <= 16 and large else SOME_GATE_UP,
            SOME_DOWN_LONG if ffn_dim >= LONG else SOME_DOWN,
        )
    # A descriptor needs rows of whole 16 bytes.
    bulk = has_bulk and hidden_dim % 8 == 0 and ffn_dim % 8 == 0
    return MANY if bulk else FastTiles(replace(MANY.gate_up, bulk=False), replace(MANY.down, bulk=False))


@functools.cache
def _capabilities(device: torch.device) -> tuple[int, bool]:
    """(shared memory that one program may take, in bytes; whether it has the bulk copy engine)."""
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    return shared, torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
