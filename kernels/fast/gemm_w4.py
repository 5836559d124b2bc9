"""The expert GEMMs of `fast` over weights of four bits with 16-bit activations (kernels/formats/mxfp4.py, int4.py).

As in gemm.py, with the same schedule and ladder of tiles. Weights are the left operand: they go from shared memory into
registers as they are packed, and from there, unpacked (w4.py), into the matrix units. Activations, in and between, are
in the order of `launch_permute`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..formats.four_bits import BLOCK, FourBits
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .blocks import Blocks
from .epilogue import PLAIN, Epilogue, inner_of, scatter
from .gemm import _climb, _load, _locate, _multiply
from .tile_types import FastTile, FastTiles
from .w4 import UNIT, constants, operands, padded, place_of, unpack_words


@triton.jit
def _settled(total, PTX: tl.constexpr):
    """total, once all products in it are done. Those of Hopper's matrix units run on while the next step is unpacked,
    into the very registers that they read: Triton 3.6 waits for the first of a step's products alone. A sum that is
    used in its own step is waited for."""
    if PTX == 9:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [total], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return total


@triton.jit
def _unpacked_product(
    # operands
    a, in_rows, a_tail, in_tail, weights, scales, matrix, n, in_n,
    # shape
    N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
    # format
    GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
    # tile
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Rows of activations times weight rows n of matrices, both [WIDTH]: float32 [HEIGHT, WIDTH] and [TAIL, WIDTH].

    a, a_tail: pointers to the beginning of each row of activations, permuted and padded. weights: int32 words; scales:
    both of [matrices, N, K]. in_n: where n is a row; EVEN: everywhere.
    """
    TYPE: tl.constexpr = a.dtype.element_ty
    MXFP4: tl.constexpr = scales.dtype.element_ty == tl.uint8
    PADDED: tl.constexpr = (K + 127) // 128 * 128
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    word = tl.arange(0, BLOCK_K // 8)  # [BLOCK_K / 8]
    group = tl.arange(0, GROUPS)  # [GROUPS]
    if PREPARED:  # `FourBits` says where
        TOGETHER: tl.constexpr = 128 // GROUP
        eight = (matrix.to(tl.int64) * (N // 8) + n // 8)[:, None]
        b = weights + eight * PADDED + (n % 8 * 16)[:, None] + (word // 16 * 128 + word % 16)[None, :]
        b_scales = scales + eight * (PADDED // GROUP * 8) + (n % 8 * TOGETHER)[:, None]
        b_scales += (group // TOGETHER * (TOGETHER * 8) + group % TOGETHER)[None, :]
    else:
        row = (matrix.to(tl.int64) * N + n)[:, None]
        b = weights + row * (K // 8) + word[None, :]
        b_scales = scales + row * (K // GROUP) + group[None, :]
    a = a[:, None] + k[None, :]  # [HEIGHT, BLOCK_K]
    total = tl.zeros([WIDTH, HEIGHT] if SWAP else [HEIGHT, WIDTH], dtype=tl.float32)
    tail = total  # stands in where there is none
    if TAIL > 0:
        a_tail = a_tail[:, None] + k[None, :]  # [TAIL, BLOCK_K]
        tail = tl.zeros([WIDTH, TAIL] if SWAP else [TAIL, WIDTH], dtype=tl.float32)
    for step in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        b_tile = _load(b, in_n, word < K // 8 - step * (BLOCK_K // 8), EVEN, K % BLOCK_K == 0)
        b += BLOCK_K if PREPARED else BLOCK_K // 8
        # A mask would part the scales of a row into loads that are too narrow to run ahead.
        in_groups = group < K // GROUP - step * GROUPS
        scale = _load(b_scales, in_n, in_groups, EVEN, K % BLOCK_K == 0 or (PREPARED and BLOCK_K == 128))
        b_scales += GROUPS * 8 if PREPARED else GROUPS
        in_k = k < PADDED - step * BLOCK_K
        a_tile = _load(a, in_rows, in_k, False, PADDED % BLOCK_K == 0)
        a += BLOCK_K
        numbers = unpack_words(b_tile, scale, TYPE, MXFP4, PREPARED, PTX)
        total = _settled(_multiply(a_tile, numbers, total, SWAP), PTX)
        if TAIL > 0:
            tail_tile = _load(a_tail, in_tail, in_k, False, PADDED % BLOCK_K == 0)
            a_tail += BLOCK_K
            tail = _settled(_multiply(tail_tile, numbers, tail, SWAP), PTX)
    if TYPE == tl.bfloat16:  # noqa: SIM300
        total *= UNIT
        tail *= UNIT
    if SWAP:
        return total.T, tail.T
    else:
        return total, tail


@triton.jit
def _store_hidden(hidden, row, in_rows, values, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """As `store` in epilogue.py, each value to its place in the order of `launch_permute`."""
    place = place_of(column * BLOCK_N + tl.arange(0, BLOCK_N))  # [BLOCK_N]
    target = hidden + (row.to(tl.int64) * N)[:, None] + place[None, :]
    tl.store(target, values.to(hidden.dtype.element_ty), mask=in_rows[:, None])


@triton.jit
def _gate_up_w4_tile(
    # operands
    x, gate_up, scales, bias, hidden, stride_token,
    # schedule
    order, weights, expert, row, rows, column,
    # shape
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    # format
    GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
    # tile
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_gate_up_tile` in gemm.py, of x and hidden in the order of `launch_permute`."""
    PADDED: tl.constexpr = (FFN + 127) // 128 * 128
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    a = x + (tl.load(order + row + m, mask=m < rows, other=0) // TOP_K).to(tl.int64) * stride_token
    m_tail = m
    a_tail = a
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        a_tail = x + (tl.load(order + row + m_tail, mask=m_tail < rows, other=0) // TOP_K).to(tl.int64) * stride_token
    lane = tl.arange(0, 2 * BLOCK_N)  # [2 * BLOCK_N]
    n = column * BLOCK_N + lane % BLOCK_N
    matrix = expert * 2 + lane // BLOCK_N
    both, both_tail = _unpacked_product(
        a, m < rows, a_tail, m_tail < rows, gate_up, scales, matrix, n, n < FFN,
        FFN, K, FFN % 128 == 0, GROUP, PREPARED, PTX, HEIGHT, TAIL, 2 * BLOCK_N, BLOCK_K, STAGES, SWAP,
    )  # fmt: skip
    order += row
    inner = inner_of(both, order, weights, bias, m, m < rows, expert, column, FFN, HEIGHT, BLOCK_N, ACTIVATION)
    _store_hidden(hidden, row + m, m < rows, inner, column, PADDED, BLOCK_N)
    if TAIL > 0:
        inner = inner_of(both_tail, order, weights, bias, m_tail, m_tail < rows, expert, column,
                         FFN, TAIL, BLOCK_N, ACTIVATION)  # fmt: skip
        _store_hidden(hidden, row + m_tail, m_tail < rows, inner, column, PADDED, BLOCK_N)


@triton.jit
def _down_w4_tile(
    # operands
    hidden, down, scales, bias, out,
    # schedule
    order, weights, expert, row, rows, column,
    # shape
    N: tl.constexpr, K: tl.constexpr,
    # format
    GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
    # tile
    BLOCK_N: tl.constexpr,
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_down_tile` in gemm.py, of hidden in the order of `launch_permute`."""
    PADDED: tl.constexpr = (K + 127) // 128 * 128
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    a = hidden + (row + m).to(tl.int64) * PADDED
    m_tail = m
    a_tail = a
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        a_tail = hidden + (row + m_tail).to(tl.int64) * PADDED
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    total, tail = _unpacked_product(
        a, m < rows, a_tail, m_tail < rows, down, scales, expert + tl.zeros_like(n), n, n < N,
        N, K, N % BLOCK_N == 0, GROUP, PREPARED, PTX, HEIGHT, TAIL, BLOCK_N, BLOCK_K, STAGES, SWAP,
    )  # fmt: skip
    scatter(out, order + row, weights, bias, m, m < rows, total, expert, column, N, BLOCK_N)
    if TAIL > 0:
        scatter(out, order + row, weights, bias, m_tail, m_tail < rows, tail, expert, column, N, BLOCK_N)


@triton.jit(do_not_specialize=["num_blocks"])
def _gate_up_w4_kernel(
    # operands
    x, gate_up, scales, bias, hidden, stride_token,
    # schedule
    order, weights, table, num_blocks,
    # shape
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    # format
    GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
    # tile
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BULK: tl.constexpr, LADDER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tl.static_assert(not BULK)
    wait_for_previous(PDL)
    release_next(PDL)
    expert, row, rows, column = _locate(table, num_blocks, (FFN + 127) // 128 * (128 // BLOCK_N))
    if rows > 0:
        arguments = (x, gate_up, scales, bias, hidden, stride_token, order, weights, expert, row, rows, column)
        _climb(_gate_up_w4_tile, arguments, rows, (TOP_K, FFN, K, GROUP, PREPARED, PTX, ACTIVATION, BLOCK_N), LADDER)


@triton.jit(do_not_specialize=["num_blocks"])
def _down_w4_kernel(
    # operands
    hidden, down, scales, bias, out,
    # schedule
    order, weights, table, num_blocks,
    # shape
    N: tl.constexpr, K: tl.constexpr,
    # format
    GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
    # tile
    BLOCK_N: tl.constexpr, BULK: tl.constexpr, LADDER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # As in gemm.py, `table` is there before the wait, the rows of `hidden` are not.
    tl.static_assert(not BULK)
    expert, row, rows, column = _locate(table, num_blocks, tl.cdiv(N, BLOCK_N))
    wait_for_previous(PDL)
    release_next(PDL)
    if rows > 0:
        arguments = (hidden, down, scales, bias, out, order, weights, expert, row, rows, column)
        _climb(_down_w4_tile, arguments, rows, (N, K, GROUP, PREPARED, PTX, BLOCK_N), LADDER)


def _constants(weights: FourBits, tiles: FastTiles, tile: FastTile) -> dict[str, Any]:
    for _, _, step, _, _ in tiles.ladder(tile):
        if step % BLOCK:
            raise ValueError(f"tiles for {weights.name} take steps of whole {BLOCK} columns, got {step}")
    return constants(weights) | tiles.constants(tile)


def launch_gate_up_w4(
    x: torch.Tensor, gate_up: FourBits, blocks: Blocks, top_k: int, tiles: FastTiles, epilogue: Epilogue = PLAIN
) -> torch.Tensor:
    """hidden [N, padded(ffn)] in expert order, in the dtype of x, permuted as x [tokens, padded(hidden)] is."""
    tile, (_, both, k) = tiles.gate_up, gate_up.shape
    ffn = both // 2
    hidden = torch.empty(x.shape[0] * top_k, padded(ffn), dtype=x.dtype, device=x.device)
    num_blocks = blocks.table.shape[1]
    launch(
        _gate_up_w4_kernel, (num_blocks * (padded(ffn) // tile.block_n),),
        x, *operands(gate_up), epilogue.gate_up_bias, hidden, x.stride(0),
        blocks.order, epilogue.for_gate_up(blocks.weights), blocks.table, num_blocks,
        TOP_K=top_k, FFN=ffn, K=k, ACTIVATION=epilogue.constants,
        **_constants(gate_up, tiles, tile), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_down_w4(
    hidden: torch.Tensor, down: FourBits, blocks: Blocks, tiles: FastTiles, epilogue: Epilogue = PLAIN
) -> torch.Tensor:
    """out [N, hidden] in slot order, in the dtype of hidden, which is as `launch_gate_up_w4` gives it; as far as
    `Epilogue.for_down` weighted by the routing."""
    tile, (_, n, k) = tiles.down, down.shape
    out = torch.empty(hidden.shape[0], n, dtype=hidden.dtype, device=hidden.device)
    num_blocks = blocks.table.shape[1]
    launch(
        _down_w4_kernel, (num_blocks * cdiv(n, tile.block_n),),
        hidden, *operands(down), epilogue.down_bias, out,
        blocks.order, epilogue.for_down(blocks.weights, out.dtype), blocks.table, num_blocks,
        N=n, K=k, **_constants(down, tiles, tile), **launch_options(hidden.device),
    )  # fmt: skip
    return out
