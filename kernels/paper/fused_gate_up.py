"""Fused gate and up projection with SiLU in registers, over the block schedule: the paper's central kernel.

hidden[r] = silu(gate_e @ rows[r]) * (up_e @ rows[r]), e the expert of row r: rows [N, k], gate_up
[num_experts, 2 * ffn, k] (gate rows, then up rows) -> hidden [N, ffn]. Both products share the tile of rows, and the
two [N, ffn] buffers of the unfused pipeline are never written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .schedule import Schedule
from .tile_order import locate_tile
from .tiles import BLOCK_M, GROUP_M, GemmTile


@triton.jit
def _fused_gate_up_kernel(
    # operands
    rows, gate_up, hidden,
    # schedule
    block_expert, block_row, offsets,
    # shape
    stride_expert, FFN: tl.constexpr, K: tl.constexpr, STRIDE_N: tl.constexpr,
    # tile
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    expert, row, end, tile = locate_tile(block_expert, block_row, offsets, tl.cdiv(FFN, BLOCK_N), BLOCK_M, GROUP_M)
    if expert < 0:
        return
    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    in_rows = (row + m < end)[:, None]
    # 64-bit offsets to the block and to the expert; inside of either 32 bits are enough.
    a = rows + row.to(tl.int64) * K + m[:, None] * K + k[None, :]  # [BLOCK_M, BLOCK_K]
    gate = gate_up + expert.to(tl.int64) * stride_expert + n[None, :] * STRIDE_N + k[:, None]  # [BLOCK_K, BLOCK_N]
    up = gate + FFN * STRIDE_N
    gate_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    up_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BLOCK_K)):
        if K % BLOCK_K == 0 and FFN % BLOCK_N == 0:
            a_tile = tl.load(a, mask=in_rows, other=0.0)
            gate_tile = tl.load(gate)
            up_tile = tl.load(up)
        else:
            left = K - step * BLOCK_K
            b_mask = (k < left)[:, None] & (n < FFN)[None, :]
            a_tile = tl.load(a, mask=in_rows & (k < left)[None, :], other=0.0)
            gate_tile = tl.load(gate, mask=b_mask, other=0.0)
            up_tile = tl.load(up, mask=b_mask, other=0.0)
        gate_sum = tl.dot(a_tile, gate_tile, gate_sum)
        up_sum = tl.dot(a_tile, up_tile, up_sum)
        a += BLOCK_K
        gate += BLOCK_K
        up += BLOCK_K
    product = gate_sum * tl.sigmoid(gate_sum) * up_sum
    c = hidden + row.to(tl.int64) * FFN + m[:, None] * FFN + n[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(c, product.to(hidden.dtype.element_ty), mask=in_rows & (n < FFN)[None, :])


def launch_fused_gate_up(rows: torch.Tensor, gate_up: torch.Tensor, schedule: Schedule, tile: GemmTile) -> torch.Tensor:
    """hidden [N, ffn] in the dtype of rows.

    rows: float16 or bfloat16 [N, k] in expert order, contiguous; gate_up: the same dtype [num_experts, 2 * ffn, k].
    """
    num_rows, k = rows.shape
    ffn = gate_up.shape[1] // 2
    hidden = torch.empty((num_rows, ffn), dtype=rows.dtype, device=rows.device)
    _fused_gate_up_kernel[(schedule.block_expert.shape[0] * triton.cdiv(ffn, tile.block_n),)](
        rows, gate_up, hidden, schedule.block_expert, schedule.block_row, schedule.offsets,
        gate_up.stride(0),
        FFN=ffn, K=k, STRIDE_N=gate_up.stride(1),
        BLOCK_M=BLOCK_M, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=GROUP_M,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return hidden
