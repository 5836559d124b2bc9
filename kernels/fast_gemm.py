"""The expert GEMMs of `fast`: tile height chosen on the GPU, block by block, from the rows that the block holds.

gate_up: x [tokens, hidden] gathered by slot, gate_up [experts, 2 * ffn, hidden] -> silu(gate) * up, [N, ffn] in expert
order. down: that, down [experts, hidden, ffn] -> [N, hidden] in slot order, unweighted. N = tokens * top_k slots.
A block of few rows runs a 16-row tile, which costs the matrix units, and so the power budget, least while weights
stream; full blocks run tiles of 64 or 128 rows. All are branches of one kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fast_schedule import Blocks
from .fast_tiles import FastTile
from .pdl import launch_options, release_next, wait_for_previous


@triton.jit
def _locate(blocks, num_blocks, num_columns):
    """(expert, first row, rows, column) of this program; rows 0 if it has nothing to do. blocks: int32 [5, num_blocks].

    Expert by expert, in an expert column by column, in a column row block by row block: blocks that need the same
    weight tile run side by side and share it through the L2 cache.
    """
    program = tl.program_id(0)
    block = program // num_columns
    first = tl.load(blocks + 3 * num_blocks + block)
    height = tl.load(blocks + 4 * num_blocks + block)
    position = program - first * num_columns
    height_or_one = tl.maximum(height, 1)
    block = tl.where(height > 0, first + position % height_or_one, block)
    expert = tl.load(blocks + block)
    row = tl.load(blocks + num_blocks + block)
    rows = tl.load(blocks + 2 * num_blocks + block)
    return expert, row, tl.where(height > 0, rows, 0), position // height_or_one


@triton.jit
def _gate_up_tile(
    x, gate_up, hidden, order, expert, row, rows, column, stride_token,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    in_rows = m < rows
    token = tl.load(order + row + m, mask=in_rows, other=0) // TOP_K
    a = x + token.to(tl.int64)[:, None] * stride_token + k[None, :]  # [BLOCK_M, BLOCK_K]
    first = expert * (2 * FFN) + column * BLOCK_N
    if not BULK:
        gate = gate_up + expert.to(tl.int64) * (2 * FFN * K) + n[None, :] * K + k[:, None]  # [BLOCK_K, BLOCK_N]
        up = gate + FFN * K
    gate_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    up_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for step in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        if BULK:
            # Past the last column lie rows of `up` or of the next expert: computed along, and not stored.
            if K % BLOCK_K == 0:
                a_tile = tl.load(a, mask=in_rows[:, None], other=0.0)
            else:
                a_tile = tl.load(a, mask=in_rows[:, None] & (k < K - step * BLOCK_K)[None, :], other=0.0)
            gate_tile = gate_up.load([first, step * BLOCK_K]).T
            up_tile = gate_up.load([first + FFN, step * BLOCK_K]).T
        elif K % BLOCK_K == 0 and FFN % BLOCK_N == 0:
            a_tile = tl.load(a, mask=in_rows[:, None], other=0.0)
            gate_tile = tl.load(gate)
            up_tile = tl.load(up)
        else:
            left = K - step * BLOCK_K
            inside = (k < left)[:, None] & (n < FFN)[None, :]
            a_tile = tl.load(a, mask=in_rows[:, None] & (k < left)[None, :], other=0.0)
            gate_tile = tl.load(gate, mask=inside, other=0.0)
            up_tile = tl.load(up, mask=inside, other=0.0)
        gate_sum = tl.dot(a_tile, gate_tile, gate_sum)
        up_sum = tl.dot(a_tile, up_tile, up_sum)
        a += BLOCK_K
        if not BULK:
            gate += BLOCK_K
            up += BLOCK_K
    product = gate_sum * tl.sigmoid(gate_sum) * up_sum
    c = hidden + (row + m).to(tl.int64)[:, None] * FFN + n[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(c, product.to(hidden.dtype.element_ty), mask=in_rows[:, None] & (n < FFN)[None, :])


@triton.jit
def _gate_up_kernel(
    x, gate_up, hidden, order, blocks, num_blocks, stride_token,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SMALL_K: tl.constexpr, SMALL_STAGES: tl.constexpr, BULK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    expert, row, rows, column = _locate(blocks, num_blocks, tl.cdiv(FFN, BLOCK_N))
    if rows > 0:
        if rows <= 16:
            _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                          TOP_K, FFN, K, 16, BLOCK_N, SMALL_K, SMALL_STAGES, BULK)  # fmt: skip
        elif BLOCK_M > 16:
            if BLOCK_M > 64 and rows <= 64:
                _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                              TOP_K, FFN, K, 64, BLOCK_N, BLOCK_K, STAGES, BULK)  # fmt: skip
            else:
                _gate_up_tile(x, gate_up, hidden, order, expert, row, rows, column, stride_token,
                              TOP_K, FFN, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, BULK)  # fmt: skip


@triton.jit
def _down_tile(
    hidden, down, out, order, expert, row, rows, column,
    N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    in_rows = m < rows
    a = hidden + (row + m).to(tl.int64)[:, None] * K + k[None, :]  # [BLOCK_M, BLOCK_K]
    first = expert * N + column * BLOCK_N
    if not BULK:
        b = down + expert.to(tl.int64) * (N * K) + n[None, :] * K + k[:, None]  # [BLOCK_K, BLOCK_N]
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for step in tl.range(0, tl.cdiv(K, BLOCK_K), num_stages=STAGES):
        if BULK:
            if K % BLOCK_K == 0:
                a_tile = tl.load(a, mask=in_rows[:, None], other=0.0)
            else:
                a_tile = tl.load(a, mask=in_rows[:, None] & (k < K - step * BLOCK_K)[None, :], other=0.0)
            b_tile = down.load([first, step * BLOCK_K]).T
        elif K % BLOCK_K == 0 and N % BLOCK_N == 0:
            a_tile = tl.load(a, mask=in_rows[:, None], other=0.0)
            b_tile = tl.load(b)
        else:
            left = K - step * BLOCK_K
            a_tile = tl.load(a, mask=in_rows[:, None] & (k < left)[None, :], other=0.0)
            b_tile = tl.load(b, mask=(k < left)[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(a_tile, b_tile, total)
        a += BLOCK_K
        if not BULK:
            b += BLOCK_K
    slot = tl.load(order + row + m, mask=in_rows, other=0)
    c = out + slot.to(tl.int64)[:, None] * N + n[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(c, total.to(out.dtype.element_ty), mask=in_rows[:, None] & (n < N)[None, :])


@triton.jit
def _down_kernel(
    hidden, down, out, order, blocks, num_blocks,
    N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    SMALL_K: tl.constexpr, SMALL_STAGES: tl.constexpr, BULK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    expert, row, rows, column = _locate(blocks, num_blocks, tl.cdiv(N, BLOCK_N))
    if rows > 0:
        if rows <= 16:
            _down_tile(hidden, down, out, order, expert, row, rows, column,
                       N, K, 16, BLOCK_N, SMALL_K, SMALL_STAGES, BULK)  # fmt: skip
        elif BLOCK_M > 16:
            if BLOCK_M > 64 and rows <= 64:
                _down_tile(hidden, down, out, order, expert, row, rows, column,
                           N, K, 64, BLOCK_N, BLOCK_K, STAGES, BULK)  # fmt: skip
            else:
                _down_tile(hidden, down, out, order, expert, row, rows, column,
                           N, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, BULK)  # fmt: skip


def launch_gate_up(x: torch.Tensor, gate_up: torch.Tensor, blocks: Blocks, top_k: int, tile: FastTile) -> torch.Tensor:
    """hidden [N, ffn] in expert order, in the dtype of x."""
    ffn, k = gate_up.shape[1] // 2, gate_up.shape[2]
    hidden = torch.empty((x.shape[0] * top_k, ffn), dtype=x.dtype, device=x.device)
    num_blocks = blocks.table.shape[1]
    _gate_up_kernel[(num_blocks * triton.cdiv(ffn, tile.block_n),)](
        x, tile.operand(gate_up), hidden, blocks.order, blocks.table, num_blocks, x.stride(0),
        TOP_K=top_k, FFN=ffn, K=k, **tile.constants(), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_down(hidden: torch.Tensor, down: torch.Tensor, blocks: Blocks, tile: FastTile) -> torch.Tensor:
    """out [N, hidden] in slot order, in the dtype of hidden."""
    n, k = down.shape[1:]
    out = torch.empty((hidden.shape[0], n), dtype=hidden.dtype, device=hidden.device)
    num_blocks = blocks.table.shape[1]
    _down_kernel[(num_blocks * triton.cdiv(n, tile.block_n),)](
        hidden, tile.operand(down), out, blocks.order, blocks.table, num_blocks, N=n, K=k,
        **tile.constants(), **launch_options(hidden.device),
    )  # fmt: skip
    return out
