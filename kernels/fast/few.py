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
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .e4m3 import operands, unpack_e4m3
from .epilogue import PLAIN, Epilogue, activate
from .local import Local, expert_of, lookup
from .tile_types import FewTile, FewTiles

SCALED_APART = tl.constexpr(16)
"""Neighbours whose products are summed before they are scaled: as many weights of 8 bits as a thread loads at once."""
APART = tl.constexpr(8)
"""Of 16 bits, in down."""
LONGEST = tl.constexpr(32)
"""The most steps of a token that the loop of down holds one by one."""


@triton.jit
def _scales(scales, matrix, n_block, start, end, STEP: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """The scales of a step of a row of blocks of a matrix in fp8_block, one for `SCALED_APART` columns, float32
    [STEP / SCALED_APART]. scales: float32 [matrices, N / 128, K / 128]."""
    block = tl.arange(0, STEP // SCALED_APART) * SCALED_APART // 128
    row = scales + (matrix * (N // 128) + n_block) * (K // 128) + start // 128
    return tl.load(row + block, mask=block * 128 < end - start, other=0.0)


@triton.jit
def _products(tile, values, APART: tl.constexpr):
    """Sums of APART neighbours, float32 [rows, STEP / APART], of a tile [rows, STEP] times values [STEP]: fewer
    registers for the sums."""
    products = unpack_e4m3(tile, tl.float32) * values.to(tl.float32)[None, :]
    if APART == 1:
        return products
    else:
        return tl.sum(tl.reshape(products, (products.shape[0], products.shape[1] // APART, APART)), axis=2)


@triton.jit
def _few_gate_up(
    x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr, ON_INPUT: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A few neurons of a slot, by its expert."""
    columns: tl.constexpr = (FFN + BLOCK_N - 1) // BLOCK_N
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tl.arange(0, STEP)  # [STEP]
    row = x + (slot // TOP_K).to(tl.int64) * stride_token + k
    gate = gate_up + (expert * (2 * FFN) + n[:, None]) * K + k[None, :]  # [BLOCK_N, STEP]
    APART: tl.constexpr = 1 if scales is None else SCALED_APART
    gate_sum = tl.zeros([BLOCK_N, STEP // APART], dtype=tl.float32)
    up_sum = tl.zeros([BLOCK_N, STEP // APART], dtype=tl.float32)
    for start in tl.range(0, K, STEP, num_stages=STAGES):
        if K % STEP == 0 and FFN % BLOCK_N == 0:
            gate_tile = tl.load(gate + start)
            up_tile = tl.load(gate + FFN * K + start)
            values = tl.load(row + start)
        else:
            inside = (n < FFN)[:, None] & (k < K - start)[None, :]
            gate_tile = tl.load(gate + start, mask=inside, other=0.0)
            up_tile = tl.load(gate + FFN * K + start, mask=inside, other=0.0)
            values = tl.load(row + start, mask=k < K - start, other=0.0)
        gate_products = _products(gate_tile, values, APART)
        up_products = _products(up_tile, values, APART)
        if scales is not None:
            block = tl.program_id(0) % columns * BLOCK_N // 128
            gate_products *= _scales(scales, expert * 2, block, start, K, STEP, FFN, K)[None, :]
            up_products *= _scales(scales, expert * 2 + 1, block, start, K, STEP, FFN, K)[None, :]
        gate_sum += gate_products
        up_sum += up_products
    gate_value = tl.sum(gate_sum, axis=1)
    up_value = tl.sum(up_sum, axis=1)
    if ON_INPUT:
        weight = tl.load(weights + slot).to(tl.float32)
        gate_value *= weight
        up_value *= weight
    if bias is not None:
        gate_value += tl.load(bias + expert * (2 * FFN) + n, mask=n < FFN, other=0.0).to(tl.float32)
        up_value += tl.load(bias + expert * (2 * FFN) + FFN + n, mask=n < FFN, other=0.0).to(tl.float32)
    product = activate(gate_value, up_value, ACTIVATION)
    if not ON_INPUT:
        product *= tl.load(weights + slot).to(tl.float32)
    tl.store(hidden + slot * FFN + n, product, mask=n < FFN)


@triton.jit(do_not_specialize=["num_global"])
def _few_gate_up_kernel(
    x, gate_up, scales, bias, hidden, experts, expert_map, weights, stride_token, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    ON_INPUT: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """hidden[slot] = act(gate, up) * weight of the slot, float32 [N, FFN]; a slot without an expert here has none."""
    wait_for_previous(PDL)
    release_next(PDL)
    slot = tl.program_id(0) // ((FFN + BLOCK_N - 1) // BLOCK_N)
    if LOCAL is None:
        expert = tl.load(experts + slot).to(tl.int64)
        _few_gate_up(x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert,
                     TOP_K, FFN, K, ACTIVATION, ON_INPUT, BLOCK_N, STEP, STAGES)  # fmt: skip
    else:
        expert = expert_of(experts, expert_map, num_global, slot, True, LOCAL).to(tl.int64)
        if expert < LOCAL:
            _few_gate_up(x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert,
                         TOP_K, FFN, K, ACTIVATION, ON_INPUT, BLOCK_N, STEP, STAGES)  # fmt: skip


@triton.jit
def _few_step(
    experts, expert_map, num_global, down, scales, slot, i, n, k, block,
    LOCAL: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Rows n of the i-th step of a token's slots, [BLOCK_N, STEP], and their scales, if there are; 0 outside, and for a
    slot without an expert here. slot: the first one of the token."""
    start = i % STEPS * STEP
    if LOCAL is None:
        expert = tl.load(experts + slot + i // STEPS)
        end = K
    else:
        expert = expert_of(experts, expert_map, num_global, slot + i // STEPS, True, LOCAL)
        end = tl.where(expert < LOCAL, K, 0)
    rows = down + (expert.to(tl.int64) * N + n[:, None]) * K + k[None, :] + start
    if LOCAL is None and K % STEP == 0 and N % BLOCK_N == 0:
        tile = tl.load(rows)
    else:
        tile = tl.load(rows, mask=(n < N)[:, None] & (k < end - start)[None, :], other=0.0)
    if scales is None:
        return tile, tile  # stands in
    else:
        return tile, _scales(scales, expert, block, start, end, STEP, N, K)


@triton.jit
def _few_values(
    experts, expert_map, num_global, hidden, slot, i, k,
    LOCAL: tl.constexpr, STEPS: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """What they meet, float32 [STEP]; 0 outside, and for a slot without an expert here, of which nothing is there."""
    own = slot + i // STEPS
    start = i % STEPS * STEP
    place = hidden + own * K + start + k
    if LOCAL is not None:
        end = tl.where(expert_of(experts, expert_map, num_global, own, True, LOCAL) < LOCAL, K, 0)
        return tl.load(place, mask=k < end - start, other=0.0)
    elif K % STEP == 0:
        return tl.load(place)
    else:
        return tl.load(place, mask=k < K - start, other=0.0)


@triton.jit
def _few_bias(
    bias, experts, expert_map, weights, num_global, slot, n,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The weighted bias of a token's experts here, float32 [BLOCK_N]."""
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    for j in tl.range(0, TOP_K):
        if LOCAL is None:
            expert = tl.load(experts + slot + j)
            rows = N
        else:
            expert = expert_of(experts, expert_map, num_global, slot + j, True, LOCAL)
            rows = tl.where(expert < LOCAL, N, 0)
        inside = n < rows
        own = tl.load(bias + expert * N + n, mask=inside, other=0.0).to(tl.float32)
        if weights is not None:
            own = tl.where(inside, own * tl.load(weights + slot + j).to(tl.float32), 0.0)
        total += own
    return total


@triton.jit(do_not_specialize=["num_global"])
def _few_down_kernel(
    hidden, down, scales, bias, y, experts, expert_map, weights, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[token] = sum over its experts here of down @ hidden, which is weighted already, and of the weighted bias.

    weights: of the biases; None where they have none. Four steps of a token are on their way at any time, the first
    ones since before the wait: the gate and up kernel waited for the routing before it let this one start.
    """
    tl.static_assert(STAGES == 1)
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = (K + STEP - 1) // STEP
    LAST: tl.constexpr = TOP_K * STEPS - 1
    slot = tl.program_id(0) // columns * TOP_K
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    block = tl.program_id(0) % columns * BLOCK_N // 128
    k = tl.arange(0, STEP)  # [STEP]
    t0, s0 = _few_step(
        experts, expert_map, num_global, down, scales, slot, 0, n, k, block, LOCAL, STEPS, N, K, BLOCK_N, STEP
    )
    t1, s1 = t0, s0
    if LAST >= 1:
        t1, s1 = _few_step(
            experts, expert_map, num_global, down, scales, slot, 1, n, k, block, LOCAL, STEPS, N, K, BLOCK_N, STEP
        )
    t2, s2 = t0, s0
    if LAST >= 2:
        t2, s2 = _few_step(
            experts, expert_map, num_global, down, scales, slot, 2, n, k, block, LOCAL, STEPS, N, K, BLOCK_N, STEP
        )
    t3, s3 = t0, s0
    if LAST >= 3:
        t3, s3 = _few_step(
            experts, expert_map, num_global, down, scales, slot, 3, n, k, block, LOCAL, STEPS, N, K, BLOCK_N, STEP
        )
    biases = tl.zeros([BLOCK_N], dtype=tl.float32)
    if bias is not None:
        biases = _few_bias(bias, experts, expert_map, weights, num_global, slot, n, LOCAL, TOP_K, N, BLOCK_N)
    wait_for_previous(PDL)
    release_next(PDL)
    v0 = _few_values(experts, expert_map, num_global, hidden, slot, 0, k, LOCAL, STEPS, K, STEP)
    v1 = v0
    if LAST >= 1:
        v1 = _few_values(experts, expert_map, num_global, hidden, slot, 1, k, LOCAL, STEPS, K, STEP)
    v2 = v0
    if LAST >= 2:
        v2 = _few_values(experts, expert_map, num_global, hidden, slot, 2, k, LOCAL, STEPS, K, STEP)
    v3 = v0
    if LAST >= 3:
        v3 = _few_values(experts, expert_map, num_global, hidden, slot, 3, k, LOCAL, STEPS, K, STEP)
    SUMMED: tl.constexpr = SCALED_APART if scales is not None else APART
    total = tl.zeros([BLOCK_N, STEP // SUMMED], dtype=tl.float32)
    RUN: tl.constexpr = LAST + 1 if LAST < LONGEST else STEPS if STEPS <= LONGEST else 1
    for first in tl.range(0, LAST + 1, RUN):
        for j in tl.static_range(RUN):
            products = _products(t0, v0, SUMMED)
            if scales is not None:
                products *= s0[None, :]
            total += products
            t0, t1, t2 = t1, t2, t3
            s0, s1, s2 = s1, s2, s3
            v0, v1, v2 = v1, v2, v3
            i = first + j + 4
            if i <= LAST:
                t3, s3 = _few_step(
                    experts, expert_map, num_global, down, scales, slot, i, n, k, block, LOCAL, STEPS, N, K, BLOCK_N,
                    STEP,
                )  # fmt: skip
                v3 = _few_values(experts, expert_map, num_global, hidden, slot, i, k, LOCAL, STEPS, K, STEP)
    y_row = y + (slot // TOP_K).to(tl.int64) * N
    tl.store(y_row + n, (tl.sum(total, axis=1) + biases).to(y.dtype.element_ty), mask=n < N)


def launch_few(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor | Fp8Block,
    down: torch.Tensor | Fp8Block,
    tiles: FewTiles,
    y: torch.Tensor,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> None:
    """Writes y [tokens, hidden]; experts, weights: [tokens, top_k]."""
    hidden = launch_few_gate_up(x, gate_up, experts, weights, tiles.gate_up, epilogue, local)
    launch_few_down(hidden, down, experts, weights, y, tiles.down, epilogue, local)


def launch_few_gate_up(
    x: torch.Tensor,
    gate_up: torch.Tensor | Fp8Block,
    experts: torch.Tensor,
    weights: torch.Tensor,
    tile: FewTile,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> torch.Tensor:
    """hidden float32 [N, ffn] in slot order, times the weight of the slot; experts, weights: [tokens, top_k]."""
    ffn, k = gate_up.shape[1] // 2, gate_up.shape[2]
    hidden = torch.empty(experts.numel(), ffn, dtype=torch.float32, device=x.device)
    expert_map, num_global, here = lookup(local)
    launch(
        _few_gate_up_kernel, (experts.numel() * cdiv(ffn, tile.block_n),),
        x, *operands(gate_up), epilogue.gate_up_bias, hidden, experts, expert_map, weights, x.stride(0), num_global,
        LOCAL=here, TOP_K=experts.shape[1], FFN=ffn, K=k, ACTIVATION=epilogue.constants,
        ON_INPUT=epilogue.weights_on_input, **tile.constants(), **launch_options(x.device),
    )  # fmt: skip
    return hidden


def launch_few_down(
    hidden: torch.Tensor,
    down: torch.Tensor | Fp8Block,
    experts: torch.Tensor,
    weights: torch.Tensor,
    y: torch.Tensor,
    tile: FewTile,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> torch.Tensor:
    """y [tokens, hidden], which it writes; hidden is weighted already, and weights are for the bias alone."""
    (tokens, top_k), (n, k) = experts.shape, down.shape[1:]
    expert_map, num_global, here = lookup(local)
    launch(
        _few_down_kernel, (tokens * cdiv(n, tile.block_n),),
        hidden, *operands(down), epilogue.down_bias, y, experts, expert_map,
        None if epilogue.weights_on_input or epilogue.down_bias is None else weights, num_global,
        LOCAL=here, TOP_K=top_k, N=n, K=k, **tile.constants(), **launch_options(hidden.device),
    )  # fmt: skip
    return y
