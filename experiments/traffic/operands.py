"""How `fast` holds the operands of its expert GEMMs, in bytes: of 16 bits, or by the format of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tritonmoe_bench.kernels.fast.choose_packed import default_activations
from tritonmoe_bench.kernels.fast.few_parts import SCALED_APART as SCALED_COLUMNS
from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.fast.w4 import padded
from tritonmoe_bench.kernels.formats import formats, four_bits
from tritonmoe_bench.kernels.formats.four_bits import FourBits
from tritonmoe_bench.kernels.formats.fp8_block import BLOCK
from tritonmoe_bench.kernels.target import Target, target_of

from ..workload.case import BYTES_PER_ELEMENT, Case

MODELLED_TARGET = Target(227 * 1024, 9)
"""Where there is no GPU, the tiles and activations are those of this one."""
MODELLED_FORMATS = ("none", "fp8_block", "mxfp4", "int4", "int4_g32")
SCALE_BYTES = 4
PLANE_BYTES = 4


@dataclass(frozen=True)
class Operands:
    """quant: a name of `MODELLED_FORMATS`; a8: activations are e4m3 with a scale for each 128 columns, else 16 bits.

    Weights of four bits lie as `FourBits.prepared` leaves them, and activations in the order of `launch_permute`, whose
    rows are whole blocks of 128 columns.
    """

    quant: str
    a8: bool = False

    @property
    def four_bits(self) -> type[FourBits] | None:
        """The format of the weights, where that is of four bits."""
        kind = formats().get(self.quant)
        return kind if kind is not None and issubclass(kind, FourBits) else None

    @property
    def rows(self) -> str:
        """The tensor that gate and up read: x, or what it was quantised or put in order to."""
        return "rows" if self.a8 or self.four_bits else "x"

    @property
    def before(self) -> str:
        """The stage that makes `rows` of x; empty where there is none."""
        return "quantize" if self.a8 else "reorder" if self.four_bits else ""

    def columns(self, columns: int) -> int:
        """Columns of activations as they lie in memory."""
        return padded(columns) if self.four_bits else columns

    def row(self, columns: int) -> int:
        """One row of activations."""
        return columns + columns // BLOCK * SCALE_BYTES if self.a8 else self.columns(columns) * BYTES_PER_ELEMENT

    def matrix(self, n: int, k: int, together: int, step: int) -> int:
        """One matrix of weights [n, k] with its scales, each byte that is read once. together: matrices that lie as one
        in memory, as gate and up do; step: columns that a program reads at a time."""
        if self.quant == "none":
            return n * k * BYTES_PER_ELEMENT
        kind = self.four_bits
        if kind is None:
            return formats()[self.quant].matrix_bytes(n, k)
        prepared = together * n % (2 * four_bits.ROWS) == 0
        group = kind.least if prepared else kind.group
        # Steps of a whole block read the scales of all of it, with those that only fill up the last one.
        scales = (padded(k) if prepared and step == four_bits.BLOCK else k) // group
        return n * k * kind.bits // 8 + n * scales * kind.scale_bytes(1, kind.group)

    def whole_row(self, columns: int, scaled: int | None = None) -> int:
        """A row of prepared weights of four bits, with what fills up its last block, and with a scale for each `scaled`
        columns; None: for as many as have one."""
        kind = self.four_bits
        assert kind is not None
        scales = padded(columns) // (scaled or kind.least)
        return padded(columns) * kind.bits // 8 + scales * kind.scale_bytes(1, kind.group)

    def planes(self, columns: int) -> int:
        """A row of activations as planes (kernels/fast/few_w4_parts.py)."""
        return (8 if self.quant == "mxfp4" else 9) * padded(columns) // 8 * PLANE_BYTES

    def issued(self, n: int, k: int, together: int, step: int) -> int:
        """What the row blocks of an expert load of a matrix, each: of fp8_block a scale with every weight row, not once
        a block of them."""
        if self.quant == "fp8_block":
            return n * k + n * (k // BLOCK) * SCALE_BYTES
        return self.matrix(n, k, together, step)

    def issued_by_few(self, n: int, k: int, together: int, tile: FewTile) -> int:
        """As `issued`, of a slot in the output-centric path: a program loads a scale for some columns of a step."""
        if self.quant == "fp8_block":
            return n * k + -(-n // tile.block_n) * -(-k // SCALED_COLUMNS.value) * SCALE_BYTES
        return self.matrix(n, k, together, tile.step)


def operands_of(case: Case, tiles: AnyTiles, activations: str | None = None) -> Operands:
    """activations: ``a8`` or ``a16``, what packed weights are multiplied with; None: by the device."""
    if case.quant == "none" or isinstance(tiles, FewTiles):
        return Operands(case.quant)
    bits = activations or default_activations(formats()[case.quant], target())
    return Operands(case.quant, bits == "a8")


def target() -> Target:
    """This machine's GPU, or the one that is modelled if there is none."""
    if torch.cuda.is_available():
        return target_of(torch.device("cuda", torch.cuda.current_device()))
    return MODELLED_TARGET
