"""The expert GEMMs of `fast` over weights of four bits (kernels/formats/mxfp4.py, int4.py).

As in gemm.py, with the same schedule and ladder of tiles. Weights are the left operand: they go from shared memory into
registers as they are packed, and from there, unpacked, into the matrix units. Activations come in one of two ways, told
by whether they have scales:
a16 (w4.py): 16 bits, in and between in the order of `launch_permute`.
a8 (w4a8.py): e4m3 as `launch_quantize_w4` gives it, of prepared weights in mxfp4 and int4; what passes from gate and up
to down is in 16 bits, in its own order, for a scale of a whole row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.four_bits import FourBits
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .blocks import Blocks
from .epilogue import PLAIN, Epilogue, inner_of, scatter, store
from .gemm import _climb, _load, _locate, _multiply
from .gemm_w4a8 import product_a8
from .tile_types import FastTiles
from .w4 import UNIT, constants, operands, padded, place_of, settled, unpack_words
from .w4a8 import SUMS, byte_operands


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
        total = _multiply(a_tile, numbers, total, SWAP)
        if TAIL > 0:
            tail_tile = _load(a_tail, in_tail, in_k, False, PADDED % BLOCK_K == 0)
            a_tail += BLOCK_K
            tail = settled(_multiply(tail_tile, numbers, tail, SWAP), PTX)
        total = settled(total, PTX)
    if TYPE == tl.bfloat16:  # noqa: SIM300
        total *= UNIT
        tail *= UNIT
    if SWAP:
        return total.T, tail.T
    else:
        return total, tail


@triton.jit
def _product(
    # operands
    a, place, a_scales, in_rows, tail_place, in_tail, weights, scales, matrix, n, in_n,
    # shape
    STRIDE, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
    # format
    GROUP: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr,
    # tile
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_unpacked_product`, in either way, of rows of a: those at place, [HEIGHT], and at tail_place, [TAIL]."""
    if a_scales is None:
        return _unpacked_product(
            a + place * STRIDE, in_rows, a + tail_place * STRIDE, in_tail, weights, scales, matrix, n, in_n,
            N, K, EVEN, GROUP, PREPARED, PTX, HEIGHT, TAIL, WIDTH, BLOCK_K, STAGES, SWAP,
        )  # fmt: skip
    else:
        PADDED: tl.constexpr = (K + 127) // 128 * 128
        SCALES: tl.constexpr = 1 if scales.dtype.element_ty == tl.uint8 else SUMS + (K + 511) // 512 * 4
        return product_a8(
            a + place * PADDED, a_scales + place * SCALES, in_rows,
            a + tail_place * PADDED, a_scales + tail_place * SCALES, in_tail, weights, scales, matrix, n, in_n,
            N, K, EVEN, GROUP, PTX, HEIGHT, TAIL, WIDTH, STAGES, SWAP,
        )  # fmt: skip


@triton.jit
def store_permuted(hidden, row, in_rows, values, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """As `store` in epilogue.py, each value to its place in the order of `launch_permute`."""
    place = place_of(column * BLOCK_N + tl.arange(0, BLOCK_N))  # [BLOCK_N]
    target = hidden + (row.to(tl.int64) * ((N + 127) // 128 * 128))[:, None] + place[None, :]
    tl.store(target, values.to(hidden.dtype.element_ty), mask=in_rows[:, None])


@triton.jit
def _store_hidden(
    hidden, row, in_rows, values, column, N: tl.constexpr, BLOCK_N: tl.constexpr, PERMUTED: tl.constexpr
):  # fmt: skip
    """As `store` in epilogue.py, or `store_permuted`."""
    if PERMUTED:
        store_permuted(hidden, row, in_rows, values, column, N, BLOCK_N)
    else:
        store(hidden, row, in_rows, values, column, N, BLOCK_N)


@triton.jit
def _gate_up_w4_tile(
    # operands
    x, x_scales, gate_up, scales, bias, hidden, stride_token,
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
    """As `_gate_up_tile` in gemm.py, of x, and in 16 bits of hidden, in the order of the way."""
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    token = (tl.load(order + row + m, mask=m < rows, other=0) // TOP_K).to(tl.int64)
    m_tail = m
    token_tail = token
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        token_tail = (tl.load(order + row + m_tail, mask=m_tail < rows, other=0) // TOP_K).to(tl.int64)
    lane = tl.arange(0, 2 * BLOCK_N)  # [2 * BLOCK_N]
    n = column * BLOCK_N + lane % BLOCK_N
    matrix = expert * 2 + lane // BLOCK_N
    both, both_tail = _product(
        x, token, x_scales, m < rows, token_tail, m_tail < rows, gate_up, scales, matrix, n, n < FFN, stride_token,
        FFN, K, FFN % (128 if x_scales is None else BLOCK_N) == 0,
        GROUP, PREPARED, PTX, HEIGHT, TAIL, 2 * BLOCK_N, BLOCK_K, STAGES, SWAP,
    )  # fmt: skip
    order += row
    inner = inner_of(both, order, weights, bias, m, m < rows, expert, column, FFN, HEIGHT, BLOCK_N, ACTIVATION)
    _store_hidden(hidden, row + m, m < rows, inner, column, FFN, BLOCK_N, x_scales is None)
    if TAIL > 0:
        inner = inner_of(both_tail, order, weights, bias, m_tail, m_tail < rows, expert, column,
                         FFN, TAIL, BLOCK_N, ACTIVATION)  # fmt: skip
        _store_hidden(hidden, row + m_tail, m_tail < rows, inner, column, FFN, BLOCK_N, x_scales is None)


@triton.jit
def _down_w4_tile(
    # operands
    hidden, hidden_scales, down, scales, bias, out,
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
    """As `_down_tile` in gemm.py, of hidden in the order of the way."""
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    place = (row + m).to(tl.int64)
    m_tail = m
    tail_place = place
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        tail_place = (row + m_tail).to(tl.int64)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    total, tail = _product(
        hidden, place, hidden_scales, m < rows, tail_place, m_tail < rows,
        down, scales, expert + tl.zeros_like(n), n, n < N, (K + 127) // 128 * 128,
        N, K, N % BLOCK_N == 0, GROUP, PREPARED, PTX, HEIGHT, TAIL, BLOCK_N, BLOCK_K, STAGES, SWAP,
    )  # fmt: skip
    scatter(out, order + row, weights, bias, m, m < rows, total, expert, column, N, BLOCK_N)
    if TAIL > 0:
        scatter(out, order + row, weights, bias, m_tail, m_tail < rows, tail, expert, column, N, BLOCK_N)


@triton.jit(do_not_specialize=["num_blocks"])
def _gate_up_w4_kernel(
    # operands
    x, x_scales, gate_up, scales, bias, hidden, stride_token,
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
    COLUMNS: tl.constexpr = (
        (FFN + 127) // 128 * (128 // BLOCK_N) if x_scales is None else (FFN + BLOCK_N - 1) // BLOCK_N
    )
    expert, row, rows, column, _ = _locate(table, num_blocks, COLUMNS, tl.program_id(0))
    if rows > 0:
        arguments = (
            x,
            x_scales,
            gate_up,
            scales,
            bias,
            hidden,
            stride_token,
            order,
            weights,
            expert,
            row,
            rows,
            column,
        )
        _climb(_gate_up_w4_tile, arguments, rows, (TOP_K, FFN, K, GROUP, PREPARED, PTX, ACTIVATION, BLOCK_N), LADDER)


@triton.jit(do_not_specialize=["num_blocks"])
def _down_w4_kernel(
    # operands
    hidden, hidden_scales, down, scales, bias, out,
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
    expert, row, rows, column, _ = _locate(table, num_blocks, tl.cdiv(N, BLOCK_N), tl.program_id(0))
    wait_for_previous(PDL)
    release_next(PDL)
    if rows > 0:
        arguments = (hidden, hidden_scales, down, scales, bias, out, order, weights, expert, row, rows, column)
        _climb(_down_w4_tile, arguments, rows, (N, K, GROUP, PREPARED, PTX, BLOCK_N), LADDER)


def launch_gate_up_w4(
    x: torch.Tensor,
    x_scales: torch.Tensor | None,
    gate_up: FourBits,
    blocks: Blocks,
    top_k: int,
    tiles: FastTiles,
    epilogue: Epilogue = PLAIN,
) -> torch.Tensor:
    """hidden in expert order, in the dtype of x [N, padded(ffn)], permuted as x [tokens, padded(hidden)] is; or in
    bfloat16 [N, ffn], where x is e4m3 and has scales."""
    tile, (_, both, k) = tiles.gate_up, gate_up.shape
    ffn, a8 = both // 2, x_scales is not None
    columns, dtype = (ffn, torch.bfloat16) if a8 else (padded(ffn), x.dtype)
    hidden = torch.empty(x.shape[0] * top_k, columns, dtype=dtype, device=x.device)
    num_blocks = blocks.table.shape[1]
    launch(
        _gate_up_w4_kernel, (num_blocks * cdiv(columns, tile.block_n),),
        x, x_scales, *(byte_operands if a8 else operands)(gate_up), epilogue.gate_up_bias, hidden, x.stride(0),
        blocks.order, epilogue.for_gate_up(blocks.weights), blocks.table, num_blocks,
        TOP_K=top_k, FFN=ffn, K=k, ACTIVATION=epilogue.constants,
        **constants(gate_up), **tiles.constants(tile), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_down_w4(
    hidden: torch.Tensor,
    hidden_scales: torch.Tensor | None,
    down: FourBits,
    blocks: Blocks,
    dtype: torch.dtype,
    tiles: FastTiles,
    epilogue: Epilogue = PLAIN,
) -> torch.Tensor:
    """out [N, hidden] in slot order, of that dtype, as far as `Epilogue.for_down` weighted by the routing. hidden: as
    `launch_gate_up_w4` gives it, or with scales as `launch_quantize_w4` makes it of that."""
    tile, (_, n, k) = tiles.down, down.shape
    out = torch.empty(hidden.shape[0], n, dtype=dtype, device=hidden.device)
    num_blocks, a8 = blocks.table.shape[1], hidden_scales is not None
    launch(
        _down_w4_kernel, (num_blocks * cdiv(n, tile.block_n),),
        hidden, hidden_scales, *(byte_operands if a8 else operands)(down), epilogue.down_bias, out,
        blocks.order, epilogue.for_down(blocks.weights, out.dtype), blocks.table, num_blocks,
        N=n, K=k, **constants(down), **tiles.constants(tile), **launch_options(hidden.device),
    )  # fmt: skip
    return out
