"""Grouped GEMM over the block schedule: the gate, up and down projections of the unfused pipeline, down of the fused.

out[r] = weights[expert of row r] @ rows[r]: rows [N, k], weights [num_experts, n, k] -> out [N, n], float32 inside. The
down projection in float16 also multiplies by the score of the row's slot (`weighted_by_down`); the paper does so in its
last pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .schedule import Schedule
from .tile_order import locate_tile
from .tiles import BLOCK_M, GROUP_M, GemmTile


@triton.jit
def _grouped_gemm_kernel(
    # operands
    rows, weights, out, scores,
    # schedule
    order, block_expert, block_row, offsets,
    # shape
    stride_expert, N: tl.constexpr, K: tl.constexpr, STRIDE_N: tl.constexpr,
    # tile
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    expert, row, end, tile = locate_tile(block_expert, block_row, offsets, tl.cdiv(N, BLOCK_N), BLOCK_M, GROUP_M)
    if expert < 0:
        return
    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    in_rows = (row + m < end)[:, None]
    # 64-bit offsets to the block and to the expert; inside of either 32 bits are enough.
    a = rows + row.to(tl.int64) * K + m[:, None] * K + k[None, :]  # [BLOCK_M, BLOCK_K]
    b = weights + expert.to(tl.int64) * stride_expert + n[None, :] * STRIDE_N + k[:, None]  # [BLOCK_K, BLOCK_N]
    accumulator = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BLOCK_K)):
        if K % BLOCK_K == 0:
            a_tile = tl.load(a, mask=in_rows, other=0.0)
            b_tile = tl.load(b) if N % BLOCK_N == 0 else tl.load(b, mask=(n < N)[None, :], other=0.0)
        else:
            left = K - step * BLOCK_K
            a_tile = tl.load(a, mask=in_rows & (k < left)[None, :], other=0.0)
            b_tile = tl.load(b, mask=(k < left)[:, None] & (n < N)[None, :], other=0.0)
        accumulator = tl.dot(a_tile, b_tile, accumulator)
        a += BLOCK_K
        b += BLOCK_K
    if scores is not None:
        slot = tl.load(order + row + m, mask=row + m < end, other=0)
        accumulator *= tl.load(scores + slot, mask=row + m < end, other=0.0)[:, None]
    c = out + row.to(tl.int64) * N + m[:, None] * N + n[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(c, accumulator.to(out.dtype.element_ty), mask=in_rows & (n < N)[None, :])


def launch_grouped_gemm(
    rows: torch.Tensor, weights: torch.Tensor, schedule: Schedule, tile: GemmTile, scores: torch.Tensor | None = None
) -> torch.Tensor:
    """out [N, n] in the dtype of rows.

    rows: float16 or bfloat16 [N, k] in expert order, contiguous; weights: the same dtype [num_experts, n, k], any
    strides but the last, so that half of a stacked gate_up will do; scores: float32 [tokens, top_k], by which the rows
    of its slots are multiplied.
    """
    num_rows, k = rows.shape
    n = weights.shape[1]
    out = torch.empty((num_rows, n), dtype=rows.dtype, device=rows.device)
    _grouped_gemm_kernel[(schedule.block_expert.shape[0] * triton.cdiv(n, tile.block_n),)](
        rows, weights, out, scores, schedule.order, schedule.block_expert, schedule.block_row, schedule.offsets,
        weights.stride(0),
        N=n, K=k, STRIDE_N=weights.stride(1),
        BLOCK_M=BLOCK_M, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=GROUP_M,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out
