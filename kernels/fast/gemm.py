"""The expert GEMMs of `fast`: tile height chosen on the GPU, block by block, from the rows that the block holds.

gate_up: x [tokens, hidden] gathered by slot, gate_up [experts, 2 * ffn, hidden] -> silu(gate) * up, [N, ffn] in expert
order. down: that, down [experts, hidden, ffn] -> [N, hidden] in slot order, unweighted. N = tokens * top_k slots.
Blocks of up to 16, 32, 64, 128 rows, and of 128 with a tail of 16, 32, 64 or 128, each have a tile of their own; all
are branches of one kernel. Tiles may be swapped: the weights are then the left operand of the matrix units, whose least
height of 64 is met by weight rows, which there are enough of, and the rows of the block are the right one, of any
width. Where they are not, blocks of 17 to 32 rows take the tile of 64, and tails have at least 64 rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..pdl import launch_options, release_next, wait_for_previous
from .blocks import Blocks
from .choose import FastTiles


@triton.jit
def _locate(blocks, num_blocks, num_columns):
    """(expert, first row, rows, column) of this program; rows 0 if it has nothing to do. blocks: int32 [5, num_blocks].

    Expert by expert, in an expert column by column, in a column row block by row block: blocks that need the same
    weight tile run side by side and share it through the L2 cache.
    """
    program = tl.program_id(0)
    block = program // num_columns
    expert = tl.load(blocks + block)
    row = tl.load(blocks + num_blocks + block)
    rows = tl.load(blocks + 2 * num_blocks + block)
    first = tl.load(blocks + 3 * num_blocks + block)
    height = tl.load(blocks + 4 * num_blocks + block)
    column = program - block * num_columns
    if height > 1:
        position = program - first * num_columns
        block = first + position % height
        row = tl.load(blocks + num_blocks + block)
        rows = tl.load(blocks + 2 * num_blocks + block)
        column = position // height
    return expert, row, rows, column


@triton.jit
def _plus(rows, columns, TRANSPOSED: tl.constexpr):
    """rows[i] + columns[j], [I, J], or [J, I] if TRANSPOSED."""
    if TRANSPOSED:
        return columns[:, None] + rows[None, :]
    else:
        return rows[:, None] + columns[None, :]


@triton.jit
def _both(rows, columns, TRANSPOSED: tl.constexpr):
    """rows[i] & columns[j], [I, J], or [J, I] if TRANSPOSED."""
    if TRANSPOSED:
        return columns[:, None] & rows[None, :]
    else:
        return rows[:, None] & columns[None, :]


@triton.jit
def _load(pointers, rows, columns, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """A tile, 0 outside of the rows and columns that are inside."""
    if EVEN_ROWS and EVEN_COLUMNS:
        return tl.load(pointers)
    else:
        if EVEN_COLUMNS:
            inside = rows[None, :] if TRANSPOSED else rows[:, None]
        elif EVEN_ROWS:
            inside = columns[:, None] if TRANSPOSED else columns[None, :]
        else:
            inside = _both(rows, columns, TRANSPOSED)
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _multiply(a, b, total, SWAP: tl.constexpr, BULK: tl.constexpr):
    """total + a @ b.T; SWAP: + b @ a.T, with `a` loaded transposed. BULK: `b` came as [BLOCK_N, BLOCK_K] either way."""
    if SWAP:
        return tl.dot(b, a, total)
    elif BULK:
        return tl.dot(a, b.T, total)
    else:
        return tl.dot(a, b, total)


@triton.jit
def _activate(both, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr):
    """silu(gate) * up of both side by side: [ROWS, 2 * BLOCK_N] -> [ROWS, BLOCK_N], swapped the other way round."""
    if SWAP:
        gate, up = tl.split(tl.permute(tl.reshape(both, (2, BLOCK_N, ROWS)), (1, 2, 0)))
    else:
        gate, up = tl.split(tl.permute(tl.reshape(both, (ROWS, 2, BLOCK_N)), (0, 2, 1)))
    return gate * tl.sigmoid(gate) * up


@triton.jit
def _gate_up_tile(
    x, gate_up, hidden, order, expert, row, rows, column, stride_token,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """Gate and up weights are one operand of 2 * BLOCK_N rows: one wide instruction reads `a` once for both."""
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    in_columns = n < FFN
    lane = tl.arange(0, 2 * BLOCK_N)
    n_both = column * BLOCK_N + lane % BLOCK_N  # [2 * BLOCK_N]
    if not BULK:
        row_both = n_both + lane // BLOCK_N * FFN
        b = gate_up + expert.to(tl.int64) * (2 * FFN * K) + _plus(row_both * K, k, not SWAP)
    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    in_rows = m < rows
    token = tl.load(order + row + m, mask=in_rows, other=0) // TOP_K
    a = x + _plus(token.to(tl.int64) * stride_token, k, SWAP)  # [BLOCK_M, BLOCK_K], swapped [BLOCK_K, BLOCK_M]
    total = tl.zeros([2 * BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, 2 * BLOCK_N], dtype=tl.float32)
    if TAIL > 0:
        m_tail = BLOCK_M + tl.arange(0, TAIL)
        in_tail = m_tail < rows
        token_tail = tl.load(order + row + m_tail, mask=in_tail, other=0) // TOP_K
        a_tail = x + _plus(token_tail.to(tl.int64) * stride_token, k, SWAP)
        tail = tl.zeros([2 * BLOCK_N, TAIL] if SWAP else [TAIL, 2 * BLOCK_N], dtype=tl.float32)
    for step in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        in_k = k < K - step * BLOCK_K
        if BULK:
            b_tile = gate_up.load([2 * expert, column * BLOCK_N, step * BLOCK_K]).reshape(2 * BLOCK_N, BLOCK_K)
        else:
            b_tile = _load(b, n_both < FFN, in_k, FFN % BLOCK_N == 0, K % BLOCK_K == 0, not SWAP)
            b += BLOCK_K
        a_tile = _load(a, in_rows, in_k, False, K % BLOCK_K == 0, SWAP)
        a += BLOCK_K
        total = _multiply(a_tile, b_tile, total, SWAP, BULK)
        if TAIL > 0:
            tail_tile = _load(a_tail, in_tail, in_k, False, K % BLOCK_K == 0, SWAP)
            a_tail += BLOCK_K
            tail = _multiply(tail_tile, b_tile, tail, SWAP, BULK)
    c = hidden + _plus((row + m).to(tl.int64) * FFN, n, SWAP)
    product = _activate(total, BLOCK_M, BLOCK_N, SWAP)
    tl.store(c, product.to(hidden.dtype.element_ty), mask=_both(in_rows, in_columns, SWAP))
    if TAIL > 0:
        c_tail = hidden + _plus((row + m_tail).to(tl.int64) * FFN, n, SWAP)
        product_tail = _activate(tail, TAIL, BLOCK_N, SWAP)
        tl.store(c_tail, product_tail.to(hidden.dtype.element_ty), mask=_both(in_tail, in_columns, SWAP))


@triton.jit(do_not_specialize=["num_blocks"])
def _gate_up_kernel(
    x, gate_up, hidden, order, blocks, num_blocks, stride_token,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SMALL_K: tl.constexpr, SMALL_STAGES: tl.constexpr, SWAP: tl.constexpr, SMALL_SWAP: tl.constexpr,
    BULK: tl.constexpr, DYNAMIC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    expert, row, rows, column = _locate(blocks, num_blocks, tl.cdiv(FFN, BLOCK_N))
    if rows > 0:
        if rows <= 16 and (DYNAMIC or BLOCK_M == 16):
            _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                          TOP_K, FFN, K, 16, 0, BLOCK_N, SMALL_K, SMALL_STAGES, SMALL_SWAP, BULK)  # fmt: skip
        elif BLOCK_M > 16:
            if rows <= 32 and ((SWAP and DYNAMIC) or BLOCK_M == 32):
                _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                              TOP_K, FFN, K, 32, 0, BLOCK_N, SMALL_K, SMALL_STAGES, SWAP, BULK)  # fmt: skip
            elif BLOCK_M > 32:
                if BLOCK_M <= 64 or (rows <= 64 and DYNAMIC):
                    _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                                  TOP_K, FFN, K, 64, 0, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif BLOCK_M <= 128 or (rows <= 128 and DYNAMIC):
                    _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                                  TOP_K, FFN, K, 128, 0, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif SWAP and (BLOCK_M <= 144 or (rows <= 144 and DYNAMIC)):
                    _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                                  TOP_K, FFN, K, 128, 16, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif SWAP and (BLOCK_M <= 160 or (rows <= 160 and DYNAMIC)):
                    _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                                  TOP_K, FFN, K, 128, 32, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif BLOCK_M <= 192 or (rows <= 192 and DYNAMIC):
                    _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                                  TOP_K, FFN, K, 128, 64, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                else:
                    _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                                  TOP_K, FFN, K, 128, 128, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip


@triton.jit
def _down_tile(
    hidden, down, out, order, expert, row, rows, column,
    N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, SWAP: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    in_columns = n < N
    if not BULK:
        b = down + expert.to(tl.int64) * (N * K) + _plus(n * K, k, not SWAP)
    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    in_rows = m < rows
    a = hidden + _plus((row + m).to(tl.int64) * K, k, SWAP)  # [BLOCK_M, BLOCK_K], swapped [BLOCK_K, BLOCK_M]
    total = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], dtype=tl.float32)
    if TAIL > 0:
        m_tail = BLOCK_M + tl.arange(0, TAIL)
        in_tail = m_tail < rows
        a_tail = hidden + _plus((row + m_tail).to(tl.int64) * K, k, SWAP)
        tail = tl.zeros([BLOCK_N, TAIL] if SWAP else [TAIL, BLOCK_N], dtype=tl.float32)
    for step in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        in_k = k < K - step * BLOCK_K
        if BULK:
            b_tile = down.load([expert, column * BLOCK_N, step * BLOCK_K]).reshape(BLOCK_N, BLOCK_K)
        else:
            b_tile = _load(b, in_columns, in_k, N % BLOCK_N == 0, K % BLOCK_K == 0, not SWAP)
            b += BLOCK_K
        a_tile = _load(a, in_rows, in_k, False, K % BLOCK_K == 0, SWAP)
        a += BLOCK_K
        total = _multiply(a_tile, b_tile, total, SWAP, BULK)
        if TAIL > 0:
            tail_tile = _load(a_tail, in_tail, in_k, False, K % BLOCK_K == 0, SWAP)
            a_tail += BLOCK_K
            tail = _multiply(tail_tile, b_tile, tail, SWAP, BULK)
    slot = tl.load(order + row + m, mask=in_rows, other=0)
    c = out + _plus(slot.to(tl.int64) * N, n, SWAP)
    tl.store(c, total.to(out.dtype.element_ty), mask=_both(in_rows, in_columns, SWAP))
    if TAIL > 0:
        slot_tail = tl.load(order + row + m_tail, mask=in_tail, other=0)
        c_tail = out + _plus(slot_tail.to(tl.int64) * N, n, SWAP)
        tl.store(c_tail, tail.to(out.dtype.element_ty), mask=_both(in_tail, in_columns, SWAP))


@triton.jit(do_not_specialize=["num_blocks"])
def _down_kernel(
    hidden, down, out, order, blocks, num_blocks,
    N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SMALL_K: tl.constexpr, SMALL_STAGES: tl.constexpr, SWAP: tl.constexpr, SMALL_SWAP: tl.constexpr,
    BULK: tl.constexpr, DYNAMIC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # The gate and up kernel waited for the routing before it let this one start, so `blocks` is there, while the rows
    # of `hidden` are not.
    expert, row, rows, column = _locate(blocks, num_blocks, tl.cdiv(N, BLOCK_N))
    wait_for_previous(PDL)
    release_next(PDL)
    if rows > 0:
        if rows <= 16 and (DYNAMIC or BLOCK_M == 16):
            _down_tile(hidden, down, out, order, expert, row, rows, column,
                       N, K, 16, 0, BLOCK_N, SMALL_K, SMALL_STAGES, SMALL_SWAP, BULK)  # fmt: skip
        elif BLOCK_M > 16:
            if rows <= 32 and ((SWAP and DYNAMIC) or BLOCK_M == 32):
                _down_tile(hidden, down, out, order, expert, row, rows, column,
                           N, K, 32, 0, BLOCK_N, SMALL_K, SMALL_STAGES, SWAP, BULK)  # fmt: skip
            elif BLOCK_M > 32:
                if BLOCK_M <= 64 or (rows <= 64 and DYNAMIC):
                    _down_tile(hidden, down, out, order, expert, row, rows, column,
                               N, K, 64, 0, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif BLOCK_M <= 128 or (rows <= 128 and DYNAMIC):
                    _down_tile(hidden, down, out, order, expert, row, rows, column,
                               N, K, 128, 0, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif SWAP and (BLOCK_M <= 144 or (rows <= 144 and DYNAMIC)):
                    _down_tile(hidden, down, out, order, expert, row, rows, column,
                               N, K, 128, 16, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif SWAP and (BLOCK_M <= 160 or (rows <= 160 and DYNAMIC)):
                    _down_tile(hidden, down, out, order, expert, row, rows, column,
                               N, K, 128, 32, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                elif BLOCK_M <= 192 or (rows <= 192 and DYNAMIC):
                    _down_tile(hidden, down, out, order, expert, row, rows, column,
                               N, K, 128, 64, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip
                else:
                    _down_tile(hidden, down, out, order, expert, row, rows, column,
                               N, K, 128, 128, BLOCK_N, BLOCK_K, STAGES, SWAP, BULK)  # fmt: skip


def launch_gate_up(
    x: torch.Tensor, gate_up: torch.Tensor, blocks: Blocks, top_k: int, tiles: FastTiles
) -> torch.Tensor:
    """hidden [N, ffn] in expert order, in the dtype of x."""
    tile, ffn, k = tiles.gate_up, gate_up.shape[1] // 2, gate_up.shape[2]
    hidden = torch.empty((x.shape[0] * top_k, ffn), dtype=x.dtype, device=x.device)
    num_blocks = blocks.table.shape[1]
    _gate_up_kernel[(num_blocks * triton.cdiv(ffn, tile.block_n),)](
        x, tile.operand(gate_up.view(-1, ffn, k), 2), hidden, blocks.order, blocks.table, num_blocks, x.stride(0),
        TOP_K=top_k, FFN=ffn, K=k, BLOCK_M=tiles.block_m, DYNAMIC=tiles.dynamic,
        **tile.constants(), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_down(hidden: torch.Tensor, down: torch.Tensor, blocks: Blocks, tiles: FastTiles) -> torch.Tensor:
    """out [N, hidden] in slot order, in the dtype of hidden."""
    tile, n, k = tiles.down, *down.shape[1:]
    out = torch.empty((hidden.shape[0], n), dtype=hidden.dtype, device=hidden.device)
    num_blocks = blocks.table.shape[1]
    _down_kernel[(num_blocks * triton.cdiv(n, tile.block_n),)](
        hidden, tile.operand(down), out, blocks.order, blocks.table, num_blocks,
        N=n, K=k, BLOCK_M=tiles.block_m, DYNAMIC=tiles.dynamic, **tile.constants(), **launch_options(hidden.device),
    )  # fmt: skip
    return out
