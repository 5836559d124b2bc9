"""The expert GEMMs of `fast`: the tile of a block is chosen on the GPU from the rows that the block holds.

gate_up: x [tokens, hidden] gathered by slot, gate_up [experts, 2 * ffn, hidden] -> silu(gate) * up, [N, ffn] in expert
order. down: that, down [experts, hidden, ffn] -> [N, hidden] in slot order. N = tokens * top_k slots.
Both kernels hold the tiles of a ladder (`FastTiles.ladder`) as branches, one for each height of block. Tiles may be
swapped: the weights are then the left operand of the matrix units, whose least height of 64 is met by weight rows, and
the rows of the block are the right operand, which may have any multiple of 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .blocks import EXPERT, FIRST, NEIGHBOURS, ROW, ROWS, Blocks
from .epilogue import PLAIN, Epilogue, inner_of, scatter, store
from .tile_types import FastTiles
from .tiled import along, is_tiled, matrices, places


@triton.jit
def _entry(table, num_blocks, block, LINE: tl.constexpr):
    return tl.load(table + num_blocks * LINE + block)


@triton.jit
def _locate(table, num_blocks, num_columns, program):
    """(expert, first row, rows, column, block) of a program; rows 0 if it has nothing to do. table: as in `Blocks`.

    Expert by expert, in an expert column by column, in a column row block by row block: blocks that need the same
    weight tile run side by side and share it through the L2 cache.
    """
    block = program // num_columns
    expert = _entry(table, num_blocks, block, EXPERT)
    row = _entry(table, num_blocks, block, ROW)
    rows = _entry(table, num_blocks, block, ROWS)
    first = _entry(table, num_blocks, block, FIRST)
    neighbours = _entry(table, num_blocks, block, NEIGHBOURS)
    column = program - block * num_columns
    if neighbours > 1:
        position = program - first * num_columns
        block = first + position % neighbours
        row = _entry(table, num_blocks, block, ROW)
        rows = _entry(table, num_blocks, block, ROWS)
        column = position // neighbours
    return expert, row, rows, column, block


@triton.jit
def _load(pointers, rows, columns, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """A tile [rows, columns]; 0 where `rows` or `columns` is false. EVEN: all of them are true."""
    if EVEN_ROWS and EVEN_COLUMNS:
        return tl.load(pointers)
    else:
        if EVEN_COLUMNS:
            inside = rows[:, None]
        elif EVEN_ROWS:
            inside = columns[None, :]
        else:
            inside = rows[:, None] & columns[None, :]
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _multiply(a, b, total, SWAP: tl.constexpr):
    """total + a @ b.T of a [rows, BLOCK_K] and b [weight rows, BLOCK_K]; SWAP: total + b @ a.T."""
    if SWAP:
        return tl.dot(b, a.T, total)
    else:
        return tl.dot(a, b.T, total)


@triton.jit
def _product(
    # operands
    a, a_tail, in_rows, in_tail, weights, expert, column,
    # shape
    N: tl.constexpr, K: tl.constexpr, MATRICES: tl.constexpr,
    # tile
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr, BULK: tl.constexpr, TILED: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Rows of activations times a column of an expert's matrices: float32 [HEIGHT, WIDTH] and [TAIL, WIDTH].

    a, a_tail: pointers to the beginning of each row, [HEIGHT] and [TAIL]. weights: [experts * MATRICES, N, K], a
    pointer or, if BULK, a descriptor; TILED: in tiles. The matrices of an expert are one operand of WIDTH = MATRICES *
    BLOCK_N weight rows, so that one wide instruction reads `a` once for all of them. SUMMED: how many columns of the K
    are summed, from the pointers on.
    """
    WIDTH: tl.constexpr = MATRICES * BLOCK_N
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    lane = tl.arange(0, WIDTH)  # [WIDTH]
    n = column * BLOCK_N + lane % BLOCK_N  # [WIDTH]
    a = a[:, None] + k[None, :]  # [HEIGHT, BLOCK_K]
    total = tl.zeros([WIDTH, HEIGHT] if SWAP else [HEIGHT, WIDTH], dtype=tl.float32)
    tail = total  # stands in where there is none
    if TAIL > 0:
        a_tail = a_tail[:, None] + k[None, :]  # [TAIL, BLOCK_K]
        tail = tl.zeros([WIDTH, TAIL] if SWAP else [TAIL, WIDTH], dtype=tl.float32)
    if not BULK:
        own = weights + expert.to(tl.int64) * (MATRICES * N * K)
        b = own + places(n + lane // BLOCK_N * N, k, K, TILED)  # [WIDTH, BLOCK_K]
    for step in tl.range(0, tl.cdiv(SUMMED, BLOCK_K), num_stages=STAGES):
        in_k = k < SUMMED - step * BLOCK_K
        if BULK:
            if TILED:
                box = weights.load([MATRICES * expert, column * (BLOCK_N // BLOCK_K), step, 0, 0])
            else:
                box = weights.load([MATRICES * expert, column * BLOCK_N, step * BLOCK_K])
            b_tile = box.reshape(WIDTH, BLOCK_K)
        else:
            b_tile = _load(b, n < N, in_k, N % BLOCK_N == 0, SUMMED % BLOCK_K == 0)
            b += along(BLOCK_K, TILED)
        a_tile = _load(a, in_rows, in_k, False, SUMMED % BLOCK_K == 0)
        a += BLOCK_K
        total = _multiply(a_tile, b_tile, total, SWAP)
        if BULK and SWAP:
            # The box is then an operand in registers, and a sum that is used in its own step is waited for in it
            # (kernels/NOTES.md, Traps). It changes nothing: rows outside are 0.
            total = tl.where(in_rows[None, :], total, 0.0)
        if TAIL > 0:
            tail_tile = _load(a_tail, in_tail, in_k, False, SUMMED % BLOCK_K == 0)
            a_tail += BLOCK_K
            tail = _multiply(tail_tile, b_tile, tail, SWAP)
    if SWAP:
        return total.T, tail.T
    else:
        return total, tail


@triton.jit
def _gate_up_tile(
    # operands
    x, gate_up, bias, hidden,
    # schedule
    order, weights, expert, row, rows, column,
    # shape
    stride_token, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    # tile
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BULK: tl.constexpr, TILED: tl.constexpr,
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """hidden[r] = act(gate @ x[token of r], up @ x[token of r]) for the rows r of a block, with the bias, and x times
    weights[slot of r], if there are."""
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    a = x + (tl.load(order + row + m, mask=m < rows, other=0) // TOP_K).to(tl.int64) * stride_token
    m_tail = m
    a_tail = a
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        a_tail = x + (tl.load(order + row + m_tail, mask=m_tail < rows, other=0) // TOP_K).to(tl.int64) * stride_token
    both, both_tail = _product(a, a_tail, m < rows, m_tail < rows, gate_up, expert, column,
                               FFN, K, 2, HEIGHT, TAIL, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK, TILED, K)  # fmt: skip
    order += row
    inner = inner_of(both, order, weights, bias, m, m < rows, expert, column, FFN, HEIGHT, BLOCK_N, ACTIVATION)
    store(hidden, row + m, m < rows, inner, column, FFN, BLOCK_N)
    if TAIL > 0:
        inner = inner_of(both_tail, order, weights, bias, m_tail, m_tail < rows, expert, column,
                         FFN, TAIL, BLOCK_N, ACTIVATION)  # fmt: skip
        store(hidden, row + m_tail, m_tail < rows, inner, column, FFN, BLOCK_N)


@triton.jit
def _down_tile(
    # operands
    hidden, down, bias, out,
    # schedule
    order, weights, expert, row, rows, column,
    # shape
    N: tl.constexpr, K: tl.constexpr,
    # tile
    BLOCK_N: tl.constexpr, BULK: tl.constexpr, TILED: tl.constexpr,
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """out[slot of r] = down @ hidden[r] for the rows r of a block, plus the bias, times weights[slot of r], if there
    are."""
    m = tl.arange(0, HEIGHT)  # [HEIGHT]
    a = hidden + (row + m).to(tl.int64) * K
    m_tail = m
    a_tail = a
    if TAIL > 0:
        m_tail = HEIGHT + tl.arange(0, TAIL)  # [TAIL]
        a_tail = hidden + (row + m_tail).to(tl.int64) * K
    total, tail = _product(a, a_tail, m < rows, m_tail < rows, down, expert, column,
                           N, K, 1, HEIGHT, TAIL, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK, TILED, K)  # fmt: skip
    scatter(out, order + row, weights, bias, m, m < rows, total, expert, column, N, BLOCK_N)
    if TAIL > 0:
        scatter(out, order + row, weights, bias, m_tail, m_tail < rows, tail, expert, column, N, BLOCK_N)


@triton.jit
def _climb(TILE: tl.constexpr, arguments, rows, SHAPE: tl.constexpr, LADDER: tl.constexpr):
    """Runs TILE at the lowest rung of LADDER that holds the rows."""
    for i in tl.static_range(len(LADDER)):
        above = i == 0 or rows > LADDER[i - 1][0] + LADDER[i - 1][1]
        if above and (i == len(LADDER) - 1 or rows <= LADDER[i][0] + LADDER[i][1]):
            TILE(*arguments, *SHAPE, LADDER[i][0], LADDER[i][1], LADDER[i][2], LADDER[i][3], LADDER[i][4])


@triton.jit(do_not_specialize=["num_blocks"])
def _gate_up_kernel(
    # operands
    x, gate_up, bias, hidden,
    # schedule
    order, weights, table, num_blocks,
    # shape
    stride_token, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    # tile
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BULK: tl.constexpr, TILED: tl.constexpr, LADDER: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    expert, row, rows, column, _ = _locate(table, num_blocks, tl.cdiv(FFN, BLOCK_N), tl.program_id(0))
    if rows > 0:
        arguments = (x, gate_up, bias, hidden, order, weights, expert, row, rows, column, stride_token)
        _climb(_gate_up_tile, arguments, rows, (TOP_K, FFN, K, ACTIVATION, BLOCK_N, BULK, TILED), LADDER)


@triton.jit(do_not_specialize=["num_blocks"])
def _down_kernel(
    # operands
    hidden, down, bias, out,
    # schedule
    order, weights, table, num_blocks,
    # shape
    N: tl.constexpr, K: tl.constexpr,
    # tile
    BLOCK_N: tl.constexpr, BULK: tl.constexpr, TILED: tl.constexpr, LADDER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # The gate and up kernel waited for the routing before it let this one start, so `table` is there, while the rows
    # of `hidden` are not.
    expert, row, rows, column, _ = _locate(table, num_blocks, tl.cdiv(N, BLOCK_N), tl.program_id(0))
    wait_for_previous(PDL)
    release_next(PDL)
    if rows > 0:
        arguments = (hidden, down, bias, out, order, weights, expert, row, rows, column)
        _climb(_down_tile, arguments, rows, (N, K, BLOCK_N, BULK, TILED), LADDER)


def launch_gate_up(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    blocks: Blocks,
    top_k: int,
    tiles: FastTiles,
    epilogue: Epilogue = PLAIN,
) -> torch.Tensor:
    """hidden [N, ffn] in expert order, in the dtype of x; rows of slots without an expert here stand last, and are not
    written.

    x: 16 bits [tokens, hidden], of any stride between rows; gate_up: the same dtype [num_experts, 2 * ffn, hidden],
    contiguous, or `tiled`. blocks: of N = tokens * top_k slots, each of up to tiles.block_m rows. Raises ValueError for
    bulk tiles of weights for which `FastTile.fitting` does not keep them.
    """
    tile, (_, both, k) = tiles.gate_up, matrices(gate_up)
    ffn = both // 2
    hidden = torch.empty(x.shape[0] * top_k, ffn, dtype=x.dtype, device=x.device)
    num_blocks = blocks.table.shape[1]
    launch(
        _gate_up_kernel, (num_blocks * cdiv(ffn, tile.block_n),),
        x, tile.operand(gate_up, 2), epilogue.gate_up_bias, hidden,
        blocks.order, epilogue.for_gate_up(blocks.weights), blocks.table, num_blocks, x.stride(0),
        TOP_K=top_k, FFN=ffn, K=k, ACTIVATION=epilogue.constants, TILED=is_tiled(gate_up), **tiles.constants(tile),
        **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_down(
    hidden: torch.Tensor, down: torch.Tensor, blocks: Blocks, tiles: FastTiles, epilogue: Epilogue = PLAIN
) -> torch.Tensor:
    """out [N, hidden] in slot order, in the dtype of hidden, as far as `Epilogue.for_down` weighted by the routing.
    Rows of slots without an expert here are not written.

    hidden: 16 bits [N, ffn] in expert order, contiguous; down: the same dtype [num_experts, hidden, ffn], contiguous,
    or `tiled`. blocks, and errors: as in `launch_gate_up`.
    """
    tile, (_, n, k) = tiles.down, matrices(down)
    out = torch.empty(hidden.shape[0], n, dtype=hidden.dtype, device=hidden.device)
    num_blocks = blocks.table.shape[1]
    launch(
        _down_kernel, (num_blocks * cdiv(n, tile.block_n),),
        hidden, tile.operand(down), epilogue.down_bias, out,
        blocks.order, epilogue.for_down(blocks.weights, out.dtype), blocks.table, num_blocks,
        N=n, K=k, TILED=is_tiled(down), **tiles.constants(tile), **launch_options(hidden.device),
    )  # fmt: skip
    return out
