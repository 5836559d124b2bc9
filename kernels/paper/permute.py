"""Permute: rows of x into expert order. Unpermute-combine: the experts' outputs back, weighted, summed over a token.

permute: x [tokens, hidden], order [N] -> rows [N, hidden], row_of_slot [N], N = tokens * top_k.
unpermute_combine: y[t] = sum over j of weights[t, j] * expert_out[row_of_slot[t * top_k + j]], float32 inside.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MAX_WIDE_TOP_K = 16
"""The most rows of a token that are summed in blocks of 1024 columns: more spill on sm_80 with Triton 3.6."""


@triton.jit
def _permute_kernel(
    x, order, rows, row_of_slot, num_rows, stride_token,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    slot = tl.load(order + row, mask=row < num_rows, other=0).to(tl.int32)
    if tl.program_id(1) == 0:
        tl.store(row_of_slot + slot, row, mask=row < num_rows)
    mask = (row < num_rows)[:, None] & (column < HIDDEN)[None, :]
    token = (slot // TOP_K).to(tl.int64)
    values = tl.load(x + token[:, None] * stride_token + column[None, :], mask=mask, other=0.0)  # [BLOCK_R, BLOCK_H]
    tl.store(rows + row[:, None].to(tl.int64) * HIDDEN + column[None, :], values, mask=mask)


@triton.jit
def _unpermute_combine_kernel(
    expert_out, row_of_slot, weights, y, num_tokens,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    inside = token < num_tokens
    mask = inside[:, None] & (column < HIDDEN)[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_H], dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        row = tl.load(row_of_slot + token * TOP_K + j, mask=inside, other=0).to(tl.int64)
        values = tl.load(expert_out + row[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
        if weights is None:
            total += values.to(tl.float32)
        else:
            weight = tl.load(weights + token * TOP_K + j, mask=inside, other=0.0)
            total += weight[:, None] * values.to(tl.float32)
    tl.store(y + token[:, None].to(tl.int64) * HIDDEN + column[None, :], total.to(y.dtype.element_ty), mask=mask)


def launch_permute(x: torch.Tensor, order: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows [N, hidden] in the dtype of x, row_of_slot int32 [N]): row r is the token of slot order[r].

    x: float16 or bfloat16 [tokens, hidden]; order: int32 or int64 [tokens * top_k], a permutation of the slots.
    """
    num_rows, hidden = x.shape[0] * top_k, x.shape[1]
    rows = torch.empty((num_rows, hidden), dtype=x.dtype, device=x.device)
    row_of_slot = torch.empty(num_rows, dtype=torch.int32, device=x.device)
    block_r, block_h = _block(num_rows, hidden, x.is_cuda)
    _permute_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(hidden, block_h))](
        x, order, rows, row_of_slot, num_rows, x.stride(0), TOP_K=top_k, HIDDEN=hidden, BLOCK_R=block_r, BLOCK_H=block_h
    )
    return rows, row_of_slot


def launch_unpermute_combine(
    expert_out: torch.Tensor, row_of_slot: torch.Tensor, top_k: int, weights: torch.Tensor | None
) -> torch.Tensor:
    """y [tokens, hidden] in the dtype of expert_out [N, hidden], each element written once, in a fixed order of sums.

    row_of_slot: int32 [N] from `launch_permute`, N = tokens * top_k; weights: float32 [tokens, top_k], None where the
    rows of expert_out are weighted already.
    """
    num_rows, hidden = expert_out.shape
    num_tokens = num_rows // top_k
    y = torch.empty((num_tokens, hidden), dtype=expert_out.dtype, device=expert_out.device)
    block_r, block_h = _block(num_tokens, hidden, expert_out.is_cuda)
    if top_k > MAX_WIDE_TOP_K and expert_out.is_cuda:
        block_h = min(block_h, 512)
    _unpermute_combine_kernel[(triton.cdiv(num_tokens, block_r), triton.cdiv(hidden, block_h))](
        expert_out, row_of_slot, weights, y, num_tokens, TOP_K=top_k, HIDDEN=hidden, BLOCK_R=block_r, BLOCK_H=block_h
    )
    return y


def _block(num_rows: int, hidden: int, on_gpu: bool) -> tuple[int, int]:
    """(BLOCK_R, BLOCK_H) of a pass over rows: 16 bytes a thread on a GPU, few programs in the interpreter."""
    elements, widest = (1024, 1024) if on_gpu else (2**18, 2**13)
    block_h = min(triton.next_power_of_2(hidden), widest)
    return min(max(elements // block_h, 1), triton.next_power_of_2(num_rows)), block_h
