"""What both kernels of the output-centric path share: their grid, their scales, their sums and how far loops unroll."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from .e4m3 import unpack_e4m3
from .tile_types import FewTile

SCALED_APART = tl.constexpr(16)
"""Neighbours whose products are summed before they are scaled: as many weights of 8 bits as a thread loads at once."""
APART = tl.constexpr(8)
"""Of 16 bits, in down."""
LONGEST, SCALED_LONGEST = 48, 32
"""The most steps that a loop holds one by one; with scales, or if it holds a part of them: some compilers run out of
registers for what they load ahead."""


@triton.jit
def owned(columns: tl.constexpr, SEVERAL: tl.constexpr):
    """(slot or token, column) of this program of a grid that `grid_of` gave."""
    if SEVERAL:
        return tl.program_id(0), tl.program_id(1)
    else:
        return tl.program_id(0) // columns, tl.program_id(0) % columns


def grid_of(rows: int, columns: int, several: bool) -> tuple[int, ...]:
    """The grid of programs that own a slot or token, of so many, and a column.

    Of one token, slot by slot, in one dimension: of two, the compiler takes fewer registers for what is on its way.
    several: the same column of all of them side by side: what two tokens that share an expert read of its weights comes
    from memory once, and once more from L2.
    """
    return (rows, columns) if several else (rows * columns,)


@triton.jit
def _scales(scales, matrix, n_block, start, end, STEP: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """The scales of a step of a row of blocks of a matrix in fp8_block, one for `SCALED_APART` columns, float32
    [STEP / SCALED_APART]. scales: float32 [matrices, N / 128, K / 128]."""
    block = tl.arange(0, STEP // SCALED_APART) * SCALED_APART // 128
    row = scales + (matrix * (N // 128) + n_block) * (K // 128) + start // 128
    return tl.load(row + block, mask=block * 128 < end - start, other=0.0)


@triton.jit
def _products(tile, values, APART: tl.constexpr):
    """Sums of APART neighbours, float32 [rows, STEP / APART], of a tile [rows, STEP] times values of its shape or
    [1, STEP]: fewer registers for the sums."""
    products = unpack_e4m3(tile, tl.float32) * values.to(tl.float32)
    if APART == 1:
        return products
    else:
        return tl.sum(tl.reshape(products, (products.shape[0], products.shape[1] // APART, APART)), axis=2)


def unrolled(steps: int, slots: int, tile: FewTile, weights: torch.Tensor | Fp8Block) -> int:
    """How many steps a loop holds one by one: all of them, or those of a part of a token's slots; one where only one is
    on its way."""
    if tile.stages == 1:
        return 1
    if steps * slots <= (LONGEST if isinstance(weights, torch.Tensor) else SCALED_LONGEST):
        return steps * slots
    return max(
        (part * steps for part in range(1, slots) if slots % part == 0 and part * steps <= SCALED_LONGEST), default=1
    )
