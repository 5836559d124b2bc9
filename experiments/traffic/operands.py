"""How `fast` holds the operands of its expert GEMMs, in bytes: of 16 bits, or by the format of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tritonmoe_bench.kernels.fast.tile_types import FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.formats import formats
from tritonmoe_bench.kernels.formats.fp8_block import BLOCK
from tritonmoe_bench.kernels.target import Target, target_of

from ..workload.case import BYTES_PER_ELEMENT, Case

MODELLED_TARGET = Target(227 * 1024, 9)
"""Where there is no GPU, the tiles and activations are those of this one."""
MODELLED_FORMATS = ("none", "fp8_block")
SCALE_BYTES = 4


@dataclass(frozen=True)
class Operands:
    """quant: a name of `MODELLED_FORMATS`; a8: activations are e4m3 with a scale for each 128 columns, else 16 bits."""

    quant: str
    a8: bool = False

    @property
    def rows(self) -> str:
        """The tensor that gate and up read: x, or what it was quantised to."""
        return "rows" if self.a8 else "x"

    def row(self, columns: int) -> int:
        """One row of activations."""
        return columns + columns // BLOCK * SCALE_BYTES if self.a8 else columns * BYTES_PER_ELEMENT

    def matrix(self, n: int, k: int) -> int:
        """One matrix of weights, with its scales."""
        return n * k * BYTES_PER_ELEMENT if self.quant == "none" else formats()[self.quant].matrix_bytes(n, k)

    def issued(self, n: int, k: int) -> int:
        """What the row blocks of an expert load of a matrix, each: a scale with every weight row, not once a block."""
        return self.matrix(n, k) if self.quant == "none" else n * k + n * (k // BLOCK) * SCALE_BYTES

    def issued_by_few(self, n: int, k: int, tile: FewTile) -> int:
        """As `issued`, of a slot in the output-centric path: a program loads a scale for a step, or a block of it."""
        if self.quant == "none":
            return self.matrix(n, k)
        return n * k + -(-n // tile.block_n) * -(-k // min(tile.step, BLOCK)) * SCALE_BYTES


def operands_of(case: Case, tiles: FastTiles | FewTiles, activations: str | None = None) -> Operands:
    """activations: ``a8`` or ``a16``, what packed weights are multiplied with; None: by the device."""
    packed = case.quant != "none" and not isinstance(tiles, FewTiles)
    return Operands(case.quant, packed and (activations or ("a8" if target().has_fp8 else "a16")) == "a8")


def target() -> Target:
    """This machine's GPU, or the one that is modelled if there is none."""
    if torch.cuda.is_available():
        return target_of(torch.device("cuda", torch.cuda.current_device()))
    return MODELLED_TARGET
