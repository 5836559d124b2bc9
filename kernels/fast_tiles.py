"""Tiles of `fast`, declared in one place."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class FastTile:
    """Tiles [rows, block_n] in steps of block_k, and for blocks of few rows in steps of small_k.

    stages and small_stages: loads in flight; num_warps: of all tiles. swap: the weights are the left operand, from 17
    rows on; small_swap: up to 16 rows too. bulk: weights come by the bulk copy engine, through a tensor descriptor;
    needs compute capability 9, small_k equal to block_k and rows of whole 16 bytes.
    """

    block_n: int
    block_k: int
    num_warps: int
    stages: int
    small_k: int
    small_stages: int
    swap: bool = False
    small_swap: bool = False
    bulk: bool = False

    def __post_init__(self) -> None:
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
            "BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "STAGES": self.stages, "SMALL_K": self.small_k,
            "SMALL_STAGES": self.small_stages, "SWAP": self.swap, "SMALL_SWAP": self.small_swap, "BULK": self.bulk,
            "num_warps": self.num_warps,
        }  # fmt: skip

    def __str__(self) -> str:
        flags = "".join(f"/{name}" for name in ("swap", "bulk") if getattr(self, name))
        return (
            f"{self.block_n}x{self.block_k}/s{self.stages}+{self.block_n}x{self.small_k}/s{self.small_stages}"
            f"{'/swap' if self.small_swap else ''}/w{self.num_warps}{flags}"
        )


@dataclass(frozen=True)
class FewTile:
    """Of the output-centric path: a program has block_n outputs and reads each one's weights step by step."""

    block_n: int
    step: int
    num_warps: int

    def constants(self) -> dict[str, Any]:
        return {"BLOCK_N": self.block_n, "STEP": self.step, "num_warps": self.num_warps}

    def __str__(self) -> str:
        return f"{self.block_n}x{self.step}/w{self.num_warps}"


@dataclass(frozen=True)
class FewTiles:
    """The tiles of the output-centric path."""

    gate_up: FewTile
    down: FewTile

    def __str__(self) -> str:
        return f"few gate_up={self.gate_up} down={self.down}"


HEIGHTS = (16, 32, 64, 128, 144, 160, 192, 256)
"""The most rows that a block may hold; beyond 128 they are a tile of 128 rows and a tail."""


@dataclass(frozen=True)
class FastTiles:
    """The tiles of both GEMMs, and block_m, the most rows of a block, which both share with the table of blocks.

    dynamic: a block takes the lowest tile that holds its rows, chosen on the GPU; else always one of block_m rows.
    """

    block_m: int
    gate_up: FastTile
    down: FastTile
    dynamic: bool = True

    def __post_init__(self) -> None:
        if self.block_m not in HEIGHTS:
            raise ValueError(f"block_m={self.block_m}: allowed are {', '.join(map(str, HEIGHTS))}")

    def __str__(self) -> str:
        return f"m{self.block_m}{'' if self.dynamic else ' fixed'} gate_up={self.gate_up} down={self.down}"


INTERPRETER = FastTiles(64, FastTile(256, 256, 4, 1, 256, 1), FastTile(256, 256, 4, 1, 256, 1))
"""In Triton's interpreter time goes with the number of programs, not with their size."""
SMALL_MEMORY = FastTiles(64, FastTile(64, 64, 4, 2, 64, 2), FastTile(128, 64, 4, 2, 64, 2))
"""Where a program has less than 150 KiB of shared memory: MI300X and consumer cards."""
MEDIUM_MEMORY = FastTiles(64, FastTile(64, 64, 4, 4, 128, 3), FastTile(128, 64, 4, 4, 128, 3))
"""Where it has less than 220 KiB: A100 and MI350."""
LIGHT = FastTile(64, 64, 4, 4, 128, 3)
"""gate and up, up to 48 rows an expert on average. Long: of many steps."""
LIGHT_LONG = FastTile(64, 128, 4, 4, 128, 4, swap=True, small_swap=True)
LIGHT_DOWN = FastTile(128, 64, 4, 4, 64, 5, swap=True, small_swap=True)
LIGHT_DOWN_LONG = FastTile(128, 128, 8, 4, 128, 4, swap=True, small_swap=True)
MIDDLE = FastTile(64, 64, 4, 3, 64, 3, swap=True, small_swap=True, bulk=True)
"""For few and large experts, whose hot ones need one tall block rather than several that read the same weights."""
HEAVY = FastTile(128, 64, 8, 4, 64, 4, swap=True, small_swap=True)
HEAVY_DOWN = FastTile(128, 64, 8, 5, 64, 5, swap=True, small_swap=True)
LONG = 6144
"""Summed dimension from which a GEMM has so many steps that wider ones pay."""


def choose_tiles(
    device: torch.device, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int
) -> FastTiles | FewTiles:
    """Tiles by the mean load of an expert, which is all that the host knows; the GPU does the rest block by block."""
    if device.type == "cpu":
        return INTERPRETER
    if tokens == 1 or (tokens == 2 and num_experts >= 64):
        return few_tiles(hidden_dim, ffn_dim, _capabilities(device)[1] < 10)
    return tiled(device, num_experts, top_k, hidden_dim, ffn_dim, tokens)


def few_tiles(hidden_dim: int, ffn_dim: int, has_registers: bool = True) -> FewTiles:
    """For a token or two, where launches and their gaps are what costs, and hardly two tokens share an expert.

    has_registers: False where the compiler runs out of them at 1024 weights a row.
    """
    gate_up = FewTile(2, 1024 if hidden_dim % 1024 == 0 else 512, 2)
    if hidden_dim >= LONG:
        return FewTiles(gate_up, FewTile(4, 512, 4))
    return FewTiles(gate_up, FewTile(4, 1024 if ffn_dim % 1024 == 0 and ffn_dim > 1024 and has_registers else 512, 2))


def tiled(device: torch.device, num_experts: int, top_k: int, hidden_dim: int, ffn_dim: int, tokens: int) -> FastTiles:
    """The tiles of the path with a schedule, however few the tokens."""
    shared, major = _capabilities(device)
    if shared < 150 * 1024:
        return SMALL_MEMORY
    if shared < 220 * 1024:
        return MEDIUM_MEMORY
    load = tokens * top_k / num_experts
    if load > 48:
        return FastTiles(192, HEAVY, HEAVY_DOWN)
    if load > 8 and ffn_dim >= LONG:
        # A descriptor needs rows of whole 16 bytes.
        return FastTiles(160, replace(MIDDLE, bulk=major >= 9 and hidden_dim % 8 == 0), HEAVY_DOWN)
    return FastTiles(
        64,
        LIGHT_LONG if hidden_dim >= LONG else LIGHT,
        LIGHT_DOWN_LONG if ffn_dim >= LONG else LIGHT_DOWN,
    )


@functools.cache
def _capabilities(device: torch.device) -> tuple[int, int]:
    """(shared memory that one program may take, in bytes; NVIDIA's major compute capability, elsewhere 0)."""
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    return shared, 0 if torch.version.hip else torch.cuda.get_device_capability(device)[0]
