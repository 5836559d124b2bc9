"""What a tile of `fast` is: of its two expert GEMMs with a schedule, and of its two paths for a few tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from .tiled import TILE, is_tiled, matrices

Rung: TypeAlias = "tuple[int, int, int, int, bool]"
"""A tile of an expert GEMM: height, tail (more rows beside the height, which share its weights), step, loads in flight,
whether the weights are the left operand."""
_POWERS = ("block_n", "block_k", "small_k", "step", "num_warps")


class _Checked:
    """Tiles whose numbers are above 0, and powers of two where they are the size of a tensor in a kernel."""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and what is allowed."""
        assert is_dataclass(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r}: true or false is needed")
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name}={value!r}: a whole number above 0 is needed")
            if field.name in _POWERS and value & (value - 1):
                raise ValueError(f"{field.name}={value}: a power of two is needed")


@dataclass(frozen=True)
class FastTile(_Checked):
    """Tiles [rows, block_n] in steps of block_k, and for blocks of few rows in steps of small_k.

    stages and small_stages: loads in flight; num_warps: of all tiles. swap: the weights are the left operand, from 17
    rows on; small_swap: up to 16 rows too. bulk: weights come by the bulk copy engine, through a tensor descriptor;
    needs compute capability 9, small_k equal to block_k and rows of whole 16 bytes. Over fp8_block a step of 256 is
    two of 128, if K is a whole number of such steps, else each is 128.
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
        super().__post_init__()
        if self.bulk and self.small_k != self.block_k:
            raise ValueError(f"bulk needs small_k equal to block_k={self.block_k}, got {self.small_k}")

    def fitting(self, weights: torch.Tensor) -> FastTile:
        """This tile, without bulk copies unless weights and rows [matrices, n, k] begin at whole 16 bytes; over tiled
        weights, which have steps of a tile then, also without those that lose: of the left operand."""
        if not self.bulk:
            return self
        if is_tiled(weights):
            fits = self.block_k == TILE and self.block_n % TILE == 0 and not self.swap and weights.data_ptr() % 16 == 0
            return self if fits else replace(self, bulk=False)
        size = weights.element_size()
        places = (weights.data_ptr(), weights.shape[2] * size, weights.stride(0) * size)
        return replace(self, bulk=False) if any(place % 16 for place in places) else self

    def highest(self, block_m: int) -> int:
        """The height of the tile that holds block_m rows."""
        if self.swap:
            return block_m
        return {48: 64, 96: 128, 144: 192, 160: 192}.get(block_m, block_m)

    def rung(self, rows: int) -> Rung:
        """The tile for blocks of up to so many rows, one of `HEIGHTS`."""
        if rows <= 16:
            return 16, 0, self.small_k, self.small_stages, self.small_swap
        if rows <= 32:
            return 32, 0, self.small_k, self.small_stages, self.swap
        if rows == 48:
            return 32, 16, self.small_k, self.small_stages, self.swap
        if rows == 96:
            return 64, 32, self.block_k, self.stages, self.swap
        return min(rows, 128), max(rows - 128, 0), self.block_k, self.stages, self.swap

    def operand(self, weights: torch.Tensor, at_once: int = 1) -> torch.Tensor | TensorDescriptor:
        """What a kernel takes for weights [experts, at_once * n, k]: the tensor, or a descriptor that loads the same
        tile of an expert's at_once matrices together."""
        if not self.bulk:
            return weights
        experts, rows, k = matrices(weights)
        if is_tiled(weights):
            if self.block_k != TILE:
                raise ValueError(f"bulk tiles over tiled weights need steps of {TILE} columns, got {self.block_k}")
            each = weights.view(experts * at_once, rows // at_once // TILE, k // TILE, TILE, TILE)
            return TensorDescriptor.from_tensor(each, [at_once, self.block_n // TILE, 1, TILE, TILE])
        if k * weights.element_size() % 16:
            raise ValueError(f"bulk tiles need weight rows of whole 16 bytes, got {k} elements")
        each = weights.view(experts * at_once, rows // at_once, k)
        return TensorDescriptor.from_tensor(each, [at_once, self.block_n, self.block_k])

    def __str__(self) -> str:
        flags = "".join(f"/{name}" for name in ("swap", "bulk") if getattr(self, name))
        return (
            f"{self.block_n}x{self.block_k}/s{self.stages}+{self.block_n}x{self.small_k}/s{self.small_stages}"
            f"{'/swap' if self.small_swap else ''}/w{self.num_warps}{flags}"
        )


@dataclass(frozen=True)
class FewTile(_Checked):
    """Of the output-centric path: a program has block_n outputs and reads each one's weights step by step.

    stages: how many steps are on their way at any time, in registers; 1 over weights of four bits.
    """

    block_n: int
    step: int
    num_warps: int
    stages: int = 1

    def constants(self) -> dict[str, Any]:
        return {"BLOCK_N": self.block_n, "STEP": self.step, "STAGES": self.stages, "num_warps": self.num_warps}

    def __str__(self) -> str:
        stages = f"/s{self.stages}" if self.stages > 1 else ""
        return f"{self.block_n}x{self.step}{stages}/w{self.num_warps}"


@dataclass(frozen=True)
class FewTiles:
    """The tiles of the output-centric path, whose activations have 16 bits."""

    gate_up: FewTile
    down: FewTile

    def __str__(self) -> str:
        return f"few gate_up={self.gate_up} down={self.down}"


JOINED_TOKENS = 32
"""A tile of the joined path has a row for each token: of more, those that are not the expert's cost more than a
schedule."""


@dataclass(frozen=True)
class JoinedTile(_Checked):
    """Of the joined path: tiles of block_n columns in steps of `step`, with so many loads in flight."""

    block_n: int
    step: int
    stages: int

    def __str__(self) -> str:
        return f"{self.block_n}x{self.step}/s{self.stages}"


@dataclass(frozen=True)
class JoinedTiles(_Checked):
    """The tiles of the joined path, one kernel for both GEMMs, for up to `JOINED_TOKENS`.

    splits: parts of each sum of down, each of a program of its own, which the combine adds up; in 16 bits alone.
    """

    gate_up: JoinedTile
    down: JoinedTile
    num_warps: int = 4
    splits: int = 1

    def __str__(self) -> str:
        splits = f" splits{self.splits}" if self.splits > 1 else ""
        return f"joined gate_up={self.gate_up} down={self.down}{splits} w{self.num_warps}"


AnyTiles: TypeAlias = "FastTiles | FewTiles | JoinedTiles"
"""The tiles of a layer, on any path."""

HEIGHTS = (16, 32, 48, 64, 96, 128, 144, 160, 192, 256)
"""The most rows that a block may hold; 48 are a tile of 32 rows and a tail, 96 one of 64, more than 128 one of 128."""
ONLY_HIGHEST = (48, 96)
"""Heights that no ladder has below its highest."""
ONLY_SWAPPED = (32, 144, 160)
"""Heights that only tiles with the weights on the left have below the highest: others need 64 rows, also of a tail."""


@dataclass(frozen=True)
class FastTiles(_Checked):
    """The tiles of both GEMMs, and block_m, the most rows of a block, which both share with the table of blocks.

    dynamic: a block takes the lowest tile that holds its rows, chosen on the GPU; else always one of block_m rows.
    one_grid: both GEMMs are one launch, whose programs have one number of warps.
    """

    block_m: int
    gate_up: FastTile
    down: FastTile
    dynamic: bool = True
    one_grid: bool = False

    def __post_init__(self) -> None:
        if self.block_m not in HEIGHTS:
            raise ValueError(f"block_m={self.block_m}: allowed are {', '.join(map(str, HEIGHTS))}")
        super().__post_init__()
        if self.one_grid and self.gate_up.num_warps != self.down.num_warps:
            raise ValueError(
                f"one_grid needs as many warps for both GEMMs, got {self.gate_up.num_warps} and {self.down.num_warps}"
            )

    @functools.cache  # noqa: B019  (there are few tiles)
    def ladder(self, tile: FastTile) -> tuple[Rung, ...]:
        """The tiles that a GEMM chooses from on the GPU, ascending; not dynamic: the last one alone."""
        left_out = ONLY_HIGHEST if tile.swap else (*ONLY_HIGHEST, *ONLY_SWAPPED)
        lower = [height for height in HEIGHTS if height < self.block_m and height not in left_out]
        rungs = [tile.rung(height) for height in (*lower, tile.highest(self.block_m))]
        return tuple(rungs if self.dynamic else rungs[-1:])

    def constants(self, tile: FastTile) -> dict[str, Any]:
        """The constants of the kernel of one of the two GEMMs."""
        return {"BLOCK_N": tile.block_n, "BULK": tile.bulk, "LADDER": self.ladder(tile), "num_warps": tile.num_warps}

    def fitting(self, gate_up: torch.Tensor, down: torch.Tensor) -> FastTiles:
        """These tiles, without bulk copies where the layout of the weights does not allow them."""
        if not (self.gate_up.bulk or self.down.bulk):
            return self
        return replace(self, gate_up=self.gate_up.fitting(gate_up), down=self.down.fitting(down))

    def __str__(self) -> str:
        flags = f"{'' if self.dynamic else ' fixed'}{' one_grid' if self.one_grid else ''}"
        return f"m{self.block_m}{flags} gate_up={self.gate_up} down={self.down}"


def steps_of(tiles: AnyTiles) -> tuple[int, ...]:
    """How many columns each tile sums in a step, of every height that is used."""
    if isinstance(tiles, FastTiles):
        return tuple(step for tile in (tiles.gate_up, tiles.down) for _, _, step, _, _ in tiles.ladder(tile))
    return tiles.gate_up.step, tiles.down.step
