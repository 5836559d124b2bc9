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


@triton.jit
def _scaled(values, scales, matrix, n_block, start, STEP: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """float32 values [STEP], times the scales of the weights that they meet: those of a row of blocks of a matrix in
    fp8_block. scales: float32 [matrices, N / 128, K / 128], or None for weights that have none."""
    values = values.to(tl.float32)
    if scales is not None:
        row = scales + (matrix * (N // 128) + n_block) * (K // 128) + start // 128
        if STEP > 128:
            block = tl.arange(0, STEP // 128)  # one scale for 128 values, instead of a load for each
            scale = tl.load(row + block, mask=block * 128 < K - start, other=0.0)
            values = tl.reshape(tl.reshape(values, (STEP // 128, 128)) * scale[:, None], (STEP,))
        else:
            values *= tl.load(row)
    return values


@triton.jit
def _kept_apart(products, APART: tl.constexpr):
    """Products [rows, columns], of which so many neighbours are summed already: fewer registers for the sums."""
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
    APART: tl.constexpr = 16 if scales is not None and STAGES > 1 else 1
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
        block = tl.program_id(0) % columns * BLOCK_N // 128
        gate_values = _scaled(values, scales, expert * 2, block, start, STEP, FFN, K)
        up_values = _scaled(values, scales, expert * 2 + 1, block, start, STEP, FFN, K)
        gate_sum += _kept_apart(unpack_e4m3(gate_tile, tl.float32) * gate_values[None, :], APART)
        up_sum += _kept_apart(unpack_e4m3(up_tile, tl.float32) * up_values[None, :], APART)
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
def _few_weights(down, expert, n, k, start, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr):
    """Rows n of an expert's weights, a step from `start` on, [BLOCK_N, STEP], 0 outside."""
    rows = down + (expert.to(tl.int64) * N + n[:, None]) * K + k[None, :] + start
    if EVEN:
        return tl.load(rows)
    else:
        return tl.load(rows, mask=(n < N)[:, None] & (k < K - start)[None, :], other=0.0)


@triton.jit
def _few_values(
    hidden, scales, expert, n_block, slot, k, start,
    STEP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A step of a slot's values from `start` on, times the scales of its expert's weights, [1, STEP], 0 outside."""
    if EVEN:
        values = tl.load(hidden + slot * K + start + k)
    else:
        values = tl.load(hidden + slot * K + start + k, mask=k < K - start, other=0.0)
    return _scaled(values, scales, expert, n_block, start, STEP, N, K)[None, :]


@triton.jit
def _few_down_slot(
    total, biases, hidden, down, scales, bias, experts, expert_map, weights, num_global, slot, j, n, k, block,
    LOCAL: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """(total [BLOCK_N, STEP], biases [BLOCK_N]) with what the j-th slot of a token adds; slot: its first one. Of the
    first slot the caller has added the first step, unless LOCAL is given."""
    if LOCAL is None:
        expert = tl.load(experts + slot + j)
        begin = STEP if j == 0 else 0
        end = K
    else:
        expert = expert_of(experts, expert_map, num_global, slot + j, True, LOCAL)
        begin = 0
        end = tl.where(expert < LOCAL, K, 0)
    for start in tl.range(begin, end, STEP):
        tile = _few_weights(down, expert, n, k, start, N, K, EVEN)
        values = _few_values(hidden, scales, expert, block, slot + j, k, start, STEP, N, K, EVEN)
        total += unpack_e4m3(tile, tl.float32) * values
    if bias is not None:
        rows = N
        if LOCAL is not None:
            rows = tl.where(expert < LOCAL, N, 0)
        inside = n < rows
        own = tl.load(bias + expert * N + n, mask=inside, other=0.0).to(tl.float32)
        if weights is not None:
            weight = tl.load(weights + slot + j).to(tl.float32)
            own = tl.where(inside, own * weight, 0.0)
        biases += own
    return total, biases


@triton.jit(do_not_specialize=["num_global"])
def _few_down_kernel(
    hidden, down, scales, bias, y, experts, expert_map, weights, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[token] = sum over its experts here of down @ hidden, which is weighted already, and of the weighted bias.

    weights: of the biases; None where they have none.
    """
    tl.static_assert(STAGES == 1)
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    even: tl.constexpr = K % STEP == 0 and N % BLOCK_N == 0
    slot = tl.program_id(0) // columns * TOP_K
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    block = tl.program_id(0) % columns * BLOCK_N // 128
    k = tl.arange(0, STEP)  # [STEP]
    if LOCAL is None:
        # The gate and up kernel waited for the routing before it let this one start, so `experts` is there, and the
        # first weights can be on their way, while `hidden` is not.
        first = tl.load(experts + slot)
        tile = _few_weights(down, first, n, k, 0, N, K, even)
    wait_for_previous(PDL)
    release_next(PDL)
    if LOCAL is None:
        total = unpack_e4m3(tile, tl.float32) * _few_values(hidden, scales, first, block, slot, k, 0, STEP, N, K, even)
    else:
        total = tl.zeros([BLOCK_N, STEP], dtype=tl.float32)
    biases = tl.zeros([BLOCK_N], dtype=tl.float32)
    if scales is not None and K <= STEP:
        for j in tl.range(0, TOP_K):  # unrolled, it takes so many registers that its programs no longer run at once
            total, biases = _few_down_slot(
                total, biases, hidden, down, scales, bias, experts, expert_map, weights, num_global, slot, j,
                n, k, block, LOCAL, N, K, STEP, even,
            )  # fmt: skip
    else:
        for j in tl.static_range(TOP_K):
            total, biases = _few_down_slot(
                total, biases, hidden, down, scales, bias, experts, expert_map, weights, num_global, slot, j,
                n, k, block, LOCAL, N, K, STEP, even,
            )  # fmt: skip
    outputs = tl.sum(total, axis=1)
    if bias is not None:
        outputs += biases
    y_row = y + (slot // TOP_K).to(tl.int64) * N
    tl.store(y_row + n, outputs.to(y.dtype.element_ty), mask=n < N)


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
