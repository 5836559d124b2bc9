"""The expert GEMMs of `fast` over weights in e4m3 with a scale per block of 128 x 128 (kernels/formats/fp8_block.py).

As in gemm.py, with the same schedule and ladder of tiles. A step is one or two blocks of 128 columns, for each of which
a weight row has one scale, and the products of a block are summed apart before they are scaled in float32: the fp8
units keep some 14 bits within a chain of instructions. Activations come in one of two ways, told by their type:
a8: e4m3 with a scale per row and block; what passes from gate and up to down is quantised by columns of tiles of the
former, which therefore are as wide as a block.
a16: 16 bits; the weights are unpacked to them in registers. For GPUs without fp8 units, and where 8 bits are too few.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .blocks import Blocks
from .e4m3 import operands, quantize_groups, unpack_e4m3
from .epilogue import PLAIN, Epilogue, inner_of, scatter, store
from .gemm import _climb, _locate, _multiply
from .tile_types import FastTiles


@triton.jit
def _scaled_product(
    # operands
    a, a_scales, in_rows, a_tail, a_tail_scales, in_tail, weights, weight_scales, expert, column,
    # shape
    N: tl.constexpr, K: tl.constexpr, MATRICES: tl.constexpr,
    # tile
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_product` in gemm.py. weights: e4m3, or its bits as uint8, [experts * MATRICES, N, K]; weight_scales: float32
    [experts * MATRICES, N / 128, K / 128]; a_scales, a_tail_scales: pointers to each row's first scale, for a8."""
    WIDTH: tl.constexpr = MATRICES * BLOCK_N
    A8: tl.constexpr = a.dtype.element_ty == tl.float8e4nv
    tl.static_assert(BLOCK_K % 128 == 0)
    PARTS: tl.constexpr = (BLOCK_K if K % BLOCK_K == 0 else 128) // 128
    k = tl.arange(0, 128)  # [128]
    lane = tl.arange(0, WIDTH)  # [WIDTH]
    n = column * BLOCK_N + lane % BLOCK_N  # [WIDTH]
    matrix = expert * MATRICES + lane // BLOCK_N  # [WIDTH]
    a = a[:, None] + k[None, :]  # [HEIGHT, 128]
    total = tl.zeros([WIDTH, HEIGHT] if SWAP else [HEIGHT, WIDTH], dtype=tl.float32)
    tail = total  # stands in where there is none
    if TAIL > 0:
        a_tail = a_tail[:, None] + k[None, :]  # [TAIL, 128]
        tail = tl.zeros([WIDTH, TAIL] if SWAP else [TAIL, WIDTH], dtype=tl.float32)
    b = weights + (matrix.to(tl.int64) * N + n)[:, None] * K + k[None, :]  # [WIDTH, 128]
    b_scale = weight_scales + (matrix * (N // 128) + n // 128) * (K // 128)  # [WIDTH]
    for step in tl.range(0, K // 128 // PARTS, num_stages=STAGES):
        for part in tl.static_range(PARTS):  # neighbours in memory, asked for one after the other
            block = step * PARTS + part
            b_tile = tl.load(b) if N % BLOCK_N == 0 else tl.load(b, mask=(n < N)[:, None], other=0.0)
            b += 128
            place = b_scale + block
            scale = tl.load(place) if N % BLOCK_N == 0 else tl.load(place, mask=n < N, other=0.0)
            if not A8:
                b_tile = unpack_e4m3(b_tile, a.dtype.element_ty)
            a_tile = tl.load(a, mask=in_rows[:, None], other=0.0)
            a += 128
            product = _multiply(a_tile, b_tile, tl.zeros_like(total), SWAP)
            if A8:
                a_scale = tl.load(a_scales + block, mask=in_rows, other=0.0)  # [HEIGHT]
                product *= a_scale[None, :] if SWAP else a_scale[:, None]
            total += product * (scale[:, None] if SWAP else scale[None, :])
            if TAIL > 0:
                tail_tile = tl.load(a_tail, mask=in_tail[:, None], other=0.0)
                a_tail += 128
                tail_product = _multiply(tail_tile, b_tile, tl.zeros_like(tail), SWAP)
                if A8:
                    tail_scale = tl.load(a_tail_scales + block, mask=in_tail, other=0.0)  # [TAIL]
                    tail_product *= tail_scale[None, :] if SWAP else tail_scale[:, None]
                tail += tail_product * (scale[:, None] if SWAP else scale[None, :])
    if SWAP:
        return total.T, tail.T
    else:
        return total, tail


@triton.jit
def store_hidden(hidden, hidden_scales, row, in_rows, values, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Stores what passes to down, for a8 as e4m3 with the scale of this column of each row."""
    if hidden.dtype.element_ty == tl.float8e4nv:
        values, scale = quantize_groups(values)
        tl.store(hidden_scales + row.to(tl.int64) * (N // BLOCK_N) + column, scale, mask=in_rows)
    store(hidden, row, in_rows, values, column, N, BLOCK_N)


@triton.jit
def _gate_up_fp8_tile(
    # operands
    x, x_scales, gate_up, gate_up_scales, bias, hidden, hidden_scales, stride_token,
    # schedule
    order, weights, expert, row, rows, column,
    # shape
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    # tile
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_gate_up_tile` in gemm.py."""
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    token = (tl.load(order + row + m, mask=m < rows, other=0) // TOP_K).to(tl.int64)
    m_tail = m
    token_tail = token
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        token_tail = (tl.load(order + row + m_tail, mask=m_tail < rows, other=0) // TOP_K).to(tl.int64)
    both, both_tail = _scaled_product(
        x + token * stride_token, x_scales + token * (K // 128), m < rows,
        x + token_tail * stride_token, x_scales + token_tail * (K // 128), m_tail < rows,
        gate_up, gate_up_scales, expert, column, FFN, K, 2, HEIGHT, TAIL, BLOCK_N, BLOCK_K, STAGES, SWAP,
    )  # fmt: skip
    order += row
    inner = inner_of(both, order, weights, bias, m, m < rows, expert, column, FFN, HEIGHT, BLOCK_N, ACTIVATION)
    store_hidden(hidden, hidden_scales, row + m, m < rows, inner, column, FFN, BLOCK_N)
    if TAIL > 0:
        inner = inner_of(both_tail, order, weights, bias, m_tail, m_tail < rows, expert, column,
                         FFN, TAIL, BLOCK_N, ACTIVATION)  # fmt: skip
        store_hidden(hidden, hidden_scales, row + m_tail, m_tail < rows, inner, column, FFN, BLOCK_N)


@triton.jit
def _down_fp8_tile(
    # operands
    hidden, hidden_scales, down, down_scales, bias, out,
    # schedule
    order, weights, expert, row, rows, column,
    # shape
    N: tl.constexpr, K: tl.constexpr,
    # tile
    BLOCK_N: tl.constexpr,
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_down_tile` in gemm.py."""
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    place = (row + m).to(tl.int64)
    m_tail = m
    place_tail = place
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        place_tail = (row + m_tail).to(tl.int64)
    total, tail = _scaled_product(
        hidden + place * K, hidden_scales + place * (K // 128), m < rows,
        hidden + place_tail * K, hidden_scales + place_tail * (K // 128), m_tail < rows,
        down, down_scales, expert, column, N, K, 1, HEIGHT, TAIL, BLOCK_N, BLOCK_K, STAGES, SWAP,
    )  # fmt: skip
    scatter(out, order + row, weights, bias, m, m < rows, total, expert, column, N, BLOCK_N)
    if TAIL > 0:
        scatter(out, order + row, weights, bias, m_tail, m_tail < rows, tail, expert, column, N, BLOCK_N)


@triton.jit(do_not_specialize=["num_blocks"])
def _gate_up_fp8_kernel(
    # operands
    x, x_scales, gate_up, gate_up_scales, bias, hidden, hidden_scales, stride_token,
    # schedule
    order, weights, table, num_blocks,
    # shape
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    # tile
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BULK: tl.constexpr, LADDER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tl.static_assert(not BULK)
    wait_for_previous(PDL)
    release_next(PDL)
    expert, row, rows, column, _ = _locate(table, num_blocks, tl.cdiv(FFN, BLOCK_N), tl.program_id(0))
    if rows > 0:
        arguments = (x, x_scales, gate_up, gate_up_scales, bias, hidden, hidden_scales, stride_token,
                     order, weights, expert, row, rows, column)  # fmt: skip
        _climb(_gate_up_fp8_tile, arguments, rows, (TOP_K, FFN, K, ACTIVATION, BLOCK_N), LADDER)


@triton.jit(do_not_specialize=["num_blocks"])
def _down_fp8_kernel(
    # operands
    hidden, hidden_scales, down, down_scales, bias, out,
    # schedule
    order, weights, table, num_blocks,
    # shape
    N: tl.constexpr, K: tl.constexpr,
    # tile
    BLOCK_N: tl.constexpr, BULK: tl.constexpr, LADDER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # As in gemm.py, `table` is there before the wait, the rows of `hidden` are not.
    expert, row, rows, column, _ = _locate(table, num_blocks, tl.cdiv(N, BLOCK_N), tl.program_id(0))
    wait_for_previous(PDL)
    release_next(PDL)
    if rows > 0:
        arguments = (hidden, hidden_scales, down, down_scales, bias, out, order, weights, expert, row, rows, column)
        _climb(_down_fp8_tile, arguments, rows, (N, K, BLOCK_N), LADDER)


def launch_gate_up_fp8(
    x: torch.Tensor,
    x_scales: torch.Tensor | None,
    gate_up: Fp8Block,
    blocks: Blocks,
    top_k: int,
    tiles: FastTiles,
    epilogue: Epilogue = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(hidden [N, ffn] in expert order, its scales float32 [N, ffn / block_n] of the tiles of gate and up).

    x: e4m3 [tokens, hidden] with x_scales float32 [tokens, hidden / 128], or 16 bits without; hidden has the type of x,
    and scales where x has.
    """
    tile, (_, both, k) = tiles.gate_up, gate_up.shape
    ffn, slots = both // 2, x.shape[0] * top_k
    hidden = torch.empty(slots, ffn, dtype=x.dtype, device=x.device)
    a8 = x_scales is not None
    hidden_scales = torch.empty(slots, ffn // tile.block_n, dtype=torch.float32, device=x.device) if a8 else None
    num_blocks = blocks.table.shape[1]
    launch(
        _gate_up_fp8_kernel, (num_blocks * cdiv(ffn, tile.block_n),),
        x, x_scales if a8 else gate_up.scales, *operands(gate_up), epilogue.gate_up_bias,
        hidden, hidden_scales if a8 else gate_up.scales, x.stride(0),
        blocks.order, epilogue.for_gate_up(blocks.weights), blocks.table, num_blocks,
        TOP_K=top_k, FFN=ffn, K=k, ACTIVATION=epilogue.constants, **tiles.constants(tile), **launch_options(x.device),
    )  # fmt: skip
    return hidden, hidden_scales


def launch_down_fp8(
    hidden: torch.Tensor,
    hidden_scales: torch.Tensor | None,
    down: Fp8Block,
    blocks: Blocks,
    dtype: torch.dtype,
    tiles: FastTiles,
    epilogue: Epilogue = PLAIN,
) -> torch.Tensor:
    """out [N, hidden] in slot order, of that dtype; hidden and hidden_scales as `launch_gate_up_fp8` gives them."""
    tile, (_, n, k) = tiles.down, down.shape
    out = torch.empty(hidden.shape[0], n, dtype=dtype, device=hidden.device)
    num_blocks = blocks.table.shape[1]
    launch(
        _down_fp8_kernel, (num_blocks * cdiv(n, tile.block_n),),
        hidden, down.scales if hidden_scales is None else hidden_scales, *operands(down), epilogue.down_bias, out,
        blocks.order, epilogue.for_down(blocks.weights, dtype), blocks.table, num_blocks,
        N=n, K=k, **tiles.constants(tile), **launch_options(hidden.device),
    )  # fmt: skip
    return out
