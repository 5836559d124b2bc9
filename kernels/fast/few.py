"""The output-centric path of `fast`, for a few tokens: no schedule, no combine, no matrix units.

logits -> experts and weights -> gate_up, whose programs own a slot and a few neurons of its expert -> down, whose
programs own a token and a few outputs and sum over its k experts in registers. N = tokens * top_k slots; tokens that
share an expert read its weights twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from ..gating import Gating
from ..pdl import launch_options, release_next, wait_for_previous
from .e4m3 import operands, unpack_e4m3
from .routing import launch_top_k
from .tile_types import FewTile, FewTiles


@triton.jit
def _scaled(values, scales, matrix, n_block, k, start, N: tl.constexpr, K: tl.constexpr):
    """float32 values [STEP], times the scales of the weights that they meet: those of a row of blocks of a matrix in
    fp8_block. scales: float32 [matrices, N / 128, K / 128], or None for weights that have none."""
    values = values.to(tl.float32)
    if scales is not None:
        row = scales + (matrix * (N // 128) + n_block) * (K // 128)
        values *= tl.load(row + (start + k) // 128, mask=k < K - start, other=0.0)
    return values


@triton.jit
def _few_gate_up_kernel(
    x, gate_up, scales, hidden, experts, weights, stride_token,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """hidden[slot] = silu(gate) * up * weight of the slot, float32 [N, FFN]."""
    wait_for_previous(PDL)
    release_next(PDL)
    columns: tl.constexpr = (FFN + BLOCK_N - 1) // BLOCK_N
    slot = tl.program_id(0) // columns
    expert = tl.load(experts + slot).to(tl.int64)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, STEP)  # [STEP]
    row = x + (slot // TOP_K).to(tl.int64) * stride_token + k
    gate = gate_up + (expert * (2 * FFN) + n[:, None]) * K + k[None, :]  # [BLOCK_N, STEP]
    gate_sum = tl.zeros([BLOCK_N, STEP], dtype=tl.float32)
    up_sum = tl.zeros([BLOCK_N, STEP], dtype=tl.float32)
    for start in tl.range(0, K, STEP):
        if K % STEP == 0 and FFN % BLOCK_N == 0:
            gate_tile = tl.load(gate + start)
            up_tile = tl.load(gate + FFN * K + start)
            values = tl.load(row + start)
        else:
            inside = (n < FFN)[:, None] & (k < K - start)[None, :]
            gate_tile = tl.load(gate + start, mask=inside, other=0.0)
            up_tile = tl.load(gate + FFN * K + start, mask=inside, other=0.0)
            values = tl.load(row + start, mask=k < K - start, other=0.0)
        block = tl.program_id(0) % columns * BLOCK_N // 128
        gate_values = _scaled(values, scales, expert * 2, block, k, start, FFN, K)
        up_values = _scaled(values, scales, expert * 2 + 1, block, k, start, FFN, K)
        gate_sum += unpack_e4m3(gate_tile, tl.float32) * gate_values[None, :]
        up_sum += unpack_e4m3(up_tile, tl.float32) * up_values[None, :]
    gate_value = tl.sum(gate_sum, axis=1)
    product = gate_value * tl.sigmoid(gate_value) * tl.sum(up_sum, axis=1) * tl.load(weights + slot)
    tl.store(hidden + slot * FFN + n, product, mask=n < FFN)


@triton.jit
def _few_weights(down, expert, n, k, start, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr):
    """Rows n of an expert's weights, a step from `start` on, [BLOCK_N, STEP], 0 outside."""
    rows = down + (expert.to(tl.int64) * N + n[:, None]) * K + k[None, :] + start
    if EVEN:
        return tl.load(rows)
    else:
        return tl.load(rows, mask=(n < N)[:, None] & (k < K - start)[None, :], other=0.0)


@triton.jit
def _few_values(hidden, scales, expert, n_block, slot, k, start, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr):
    """A step of a slot's values from `start` on, times the scales of its expert's weights, [1, STEP], 0 outside."""
    if EVEN:
        values = tl.load(hidden + slot * K + start + k)
    else:
        values = tl.load(hidden + slot * K + start + k, mask=k < K - start, other=0.0)
    return _scaled(values, scales, expert, n_block, k, start, N, K)[None, :]


@triton.jit
def _few_down_kernel(
    hidden, down, scales, y, experts,
    TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[token] = sum over its experts of down @ hidden, which is weighted already."""
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    even: tl.constexpr = K % STEP == 0 and N % BLOCK_N == 0
    slot = tl.program_id(0) // columns * TOP_K
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    block = tl.program_id(0) % columns * BLOCK_N // 128
    k = tl.arange(0, STEP)  # [STEP]
    # The gate and up kernel waited for the routing before it let this one start, so `experts` is there, and the first
    # weights can be on their way, while `hidden` is not.
    first = tl.load(experts + slot)
    weights = _few_weights(down, first, n, k, 0, N, K, even)
    wait_for_previous(PDL)
    release_next(PDL)
    total = unpack_e4m3(weights, tl.float32) * _few_values(hidden, scales, first, block, slot, k, 0, N, K, even)
    for j in tl.static_range(TOP_K):
        expert = tl.load(experts + slot + j)
        for start in tl.range(STEP if j == 0 else 0, K, STEP):
            weights = _few_weights(down, expert, n, k, start, N, K, even)
            values = _few_values(hidden, scales, expert, block, slot + j, k, start, N, K, even)
            total += unpack_e4m3(weights, tl.float32) * values  # [BLOCK_N, STEP]
    y_row = y + (slot // TOP_K).to(tl.int64) * N
    tl.store(y_row + n, tl.sum(total, axis=1).to(y.dtype.element_ty), mask=n < N)


def launch_few(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: torch.Tensor | Fp8Block,
    down: torch.Tensor | Fp8Block,
    top_k: int,
    gating: Gating,
    correction_bias: torch.Tensor | None,
    tiles: FewTiles,
) -> torch.Tensor:
    """y [tokens, hidden] in the dtype of x, of logits [parts, tokens, num_experts]."""
    experts, weights = launch_top_k(logits, top_k, gating, correction_bias)
    hidden = launch_few_gate_up(x, gate_up, experts, weights, tiles.gate_up)
    return launch_few_down(hidden, down, experts, x.dtype, tiles.down)


def launch_few_gate_up(
    x: torch.Tensor, gate_up: torch.Tensor | Fp8Block, experts: torch.Tensor, weights: torch.Tensor, tile: FewTile
) -> torch.Tensor:
    """hidden float32 [N, ffn] in slot order, times the weight of the slot; experts, weights: [tokens, top_k]."""
    ffn, k = gate_up.shape[1] // 2, gate_up.shape[2]
    hidden = torch.empty((experts.numel(), ffn), dtype=torch.float32, device=x.device)
    _few_gate_up_kernel[(experts.numel() * triton.cdiv(ffn, tile.block_n),)](
        x, *operands(gate_up), hidden, experts, weights, x.stride(0), TOP_K=experts.shape[1], FFN=ffn, K=k,
        **tile.constants(), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_few_down(
    hidden: torch.Tensor, down: torch.Tensor | Fp8Block, experts: torch.Tensor, dtype: torch.dtype, tile: FewTile
) -> torch.Tensor:
    """y [tokens, hidden] of that dtype."""
    (tokens, top_k), (n, k) = experts.shape, down.shape[1:]
    y = torch.empty((tokens, n), dtype=dtype, device=hidden.device)
    _few_down_kernel[(tokens * triton.cdiv(n, tile.block_n),)](
        hidden, *operands(down), y, experts, TOP_K=top_k, N=n, K=k, **tile.constants(), **launch_options(hidden.device)
    )
    return y
