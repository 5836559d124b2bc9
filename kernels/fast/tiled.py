"""Weights of 16 bits in tiles of 64 rows by 64 columns, each of which is one piece of memory.

A program of the expert GEMMs reads 64 to 256 columns of many rows at a time. In the layout of checkpoints those are as
many pieces of 128 to 512 bytes, whole rows apart; of tiles they are pieces of 8 KB, which memory gives faster. The
numbers are the same, and so are the results of the same kernels, bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats import Packed

TILE = 64
"""Rows and columns of a tile."""
_TILE = tl.constexpr(TILE)


def tiled(weights: torch.Tensor) -> torch.Tensor:
    """The same weights in tiles, [experts, rows / 64, columns / 64, 64, 64], as `fast_moe` and `fast_experts` take them
    too; to be done once, when a checkpoint is loaded. Takes as much memory again while it runs.

    weights: any dtype [experts, rows, columns], gate rows then up rows. hidden and ffn have to be multiples of 64: of
    gate_up, whose rows do not say where up begins, the layer's forward checks it against down. Zeros fill up
    what is no multiple: of ffn as many rows behind gate as behind up, and as many columns of down; of hidden also x and
    the router's weight.

    Raises TypeError for what is no tensor, such as packed weights, which have layouts of their own; ValueError for
    another rank, or where 64 divides rows or columns not.
    """
    if not isinstance(weights, torch.Tensor):
        raise TypeError(
            f"tiled takes a torch.Tensor, got {type(weights).__name__}: packed weights have their own layout, which "
            f"their prepared() gives"
        )
    if weights.dim() != 3:
        hint = ": they are tiled already" if is_tiled(weights) else ""
        raise ValueError(f"tiled takes [experts, rows, columns], got {list(weights.shape)}{hint}")
    if weights.shape[1] % TILE or weights.shape[2] % TILE:
        raise ValueError(
            f"tiled takes [experts, rows, columns] of whole tiles of {TILE} by {TILE}, got {list(weights.shape)}: "
            f"leave such weights as they are, or pad them with zeros, gate and up each on its own"
        )
    experts, rows, columns = weights.shape
    parts = weights.view(experts, rows // TILE, TILE, columns // TILE, TILE)
    return parts.transpose(2, 3).contiguous()


def untiled(weights: torch.Tensor) -> torch.Tensor:
    """[experts, rows, columns]: the inverse of `tiled`.

    weights: [experts, rows / 64, columns / 64, 64, 64]. Raises TypeError for what is no tensor, ValueError for another
    shape.
    """
    if not isinstance(weights, torch.Tensor):
        raise TypeError(f"untiled takes a torch.Tensor, got {type(weights).__name__}")
    if weights.dim() != 5 or weights.shape[3:] != (TILE, TILE):
        wanted = f"[experts, rows / {TILE}, columns / {TILE}, {TILE}, {TILE}], as tiled gives them"
        raise ValueError(f"untiled takes {wanted}, got {list(weights.shape)}")
    experts, down, across, rows, columns = weights.shape
    return weights.transpose(2, 3).reshape(experts, down * rows, across * columns)


def is_tiled(weights: torch.Tensor | Packed) -> bool:
    """Whether weights have the shape that `tiled` gives."""
    return len(weights.shape) == 5


def matrices(weights: torch.Tensor | Packed) -> tuple[int, int, int]:
    """(experts, rows, columns) of weights in any layout."""
    experts, rows, columns, *tile = list(weights.shape)
    return (experts, rows * tile[0], columns * tile[1]) if tile else (experts, rows, columns)


@triton.jit
def places(n, k, K: tl.constexpr, TILED: tl.constexpr):
    """Where rows n [rows] and columns k [columns] of a matrix of K columns lie, from its beginning: [rows, columns]."""
    if TILED:
        row = n // _TILE * (_TILE * K) + n % _TILE * _TILE
        column = k // _TILE * (_TILE * _TILE) + k % _TILE
        return row[:, None] + column[None, :]
    else:
        return n[:, None] * K + k[None, :]


@triton.jit
def along(columns, TILED: tl.constexpr):
    """How far so many columns take on, in the same rows; of tiles, whole ones."""
    if TILED:
        return columns * _TILE
    else:
        return columns
