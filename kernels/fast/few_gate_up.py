"""Gate and up of the output-centric path: a program owns a slot and a few neurons of its expert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .e4m3 import operands
from .epilogue import PLAIN, Epilogue, activate
from .few_parts import SCALED_APART, _products, _scales, grid_of, owned, unrolled
from .local import Local, expert_of, lookup
from .tile_types import FewTile
from .tiled import along, is_tiled, matrices, places


@triton.jit
def _few_gate_up_step(
    row, gate, scales, expert, block, n, k, start,
    FFN: tl.constexpr, K: tl.constexpr, TILED: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A step of neurons n: gate's and up's weights [BLOCK_N, STEP], their scales, if there are, and x, [1, STEP] or
    [STEP] (see `_few_values`). WHOLE: nothing of any step is outside."""
    own = row if scales is not None else row[None, :]
    in_row = k if scales is not None else k[None, :]
    at = along(start, TILED)
    if WHOLE:
        gate_tile = tl.load(gate + at)
        up_tile = tl.load(gate + FFN * K + at)
        values = tl.load(own + start)
    else:
        inside = (n < FFN)[:, None] & (k < K - start)[None, :]
        gate_tile = tl.load(gate + at, mask=inside, other=0.0)
        up_tile = tl.load(gate + FFN * K + at, mask=inside, other=0.0)
        values = tl.load(own + start, mask=in_row < K - start, other=0.0)
    if scales is None:
        return gate_tile, up_tile, gate_tile, up_tile, values  # the tiles stand in
    else:
        gate_scales = _scales(scales, expert * 2, block, start, K, STEP, FFN, K)
        return gate_tile, up_tile, gate_scales, _scales(scales, expert * 2 + 1, block, start, K, STEP, FFN, K), values


@triton.jit
def _few_gate_up(
    x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert, column,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, TILED: tl.constexpr, ACTIVATION: tl.constexpr,
    ON_INPUT: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """A few neurons of a slot, by its expert."""
    STEPS: tl.constexpr = (K + STEP - 1) // STEP
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    block = column * BLOCK_N // 128
    k = tl.arange(0, STEP)  # [STEP]
    row = x + (slot // TOP_K).to(tl.int64) * stride_token + k
    if TILED:
        gate = gate_up + expert * (2 * FFN * K) + places(n, k, K, True)  # [BLOCK_N, STEP]
    else:
        gate = gate_up + (expert * (2 * FFN) + n[:, None]) * K + k[None, :]
    WHOLE: tl.constexpr = K % STEP == 0 and FFN % BLOCK_N == 0
    DEPTH: tl.constexpr = min(STAGES, STEPS) if STAGES > 1 else 0
    flying = ()
    for s in tl.static_range(DEPTH):
        flying = flying + (
            _few_gate_up_step(row, gate, scales, expert, block, n, k, s * STEP, FFN, K, TILED, STEP, WHOLE),
        )
    APART: tl.constexpr = 1 if scales is None else SCALED_APART
    gate_sum = tl.zeros([BLOCK_N, STEP // APART], dtype=tl.float32)
    up_sum = tl.zeros([BLOCK_N, STEP // APART], dtype=tl.float32)
    for first in tl.range(0, STEPS, RUN):
        for j in tl.static_range(RUN):
            i = first + j + DEPTH
            if DEPTH == 0:
                now = _few_gate_up_step(row, gate, scales, expert, block, n, k, i * STEP, FFN, K, TILED, STEP, WHOLE)
            else:
                now = flying[0]
            gate_tile, up_tile, gate_scales, up_scales, values = now
            if scales is not None:
                values = values[None, :]
            gate_products = _products(gate_tile, values, APART)
            up_products = _products(up_tile, values, APART)
            if scales is not None:
                gate_products *= gate_scales[None, :]
                up_products *= up_scales[None, :]
            gate_sum += gate_products
            up_sum += up_products
            if DEPTH > 0:
                step = flying[0]
                if i < STEPS:
                    step = _few_gate_up_step(row, gate, scales, expert, block, n, k, i * STEP,
                                             FFN, K, TILED, STEP, WHOLE)  # fmt: skip
                flying = flying[1:] + (step,)
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
    tl.store(hidden + slot * FFN + n, product.to(hidden.dtype.element_ty), mask=n < FFN)


@triton.jit(do_not_specialize=["num_global"])
def _few_gate_up_kernel(
    x, gate_up, scales, bias, hidden, experts, expert_map, weights, stride_token, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, TILED: tl.constexpr,
    ACTIVATION: tl.constexpr, ON_INPUT: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, RUN: tl.constexpr,
    SEVERAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """hidden[slot] = act(gate, up) * weight of the slot, [N, FFN]; a slot without an expert here has none."""
    wait_for_previous(PDL)
    release_next(PDL)
    slot, column = owned((FFN + BLOCK_N - 1) // BLOCK_N, SEVERAL)
    if LOCAL is None:
        expert = tl.load(experts + slot).to(tl.int64)
        _few_gate_up(x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert, column,
                     TOP_K, FFN, K, TILED, ACTIVATION, ON_INPUT, BLOCK_N, STEP, STAGES, RUN)  # fmt: skip
    else:
        expert = expert_of(experts, expert_map, num_global, slot, True, LOCAL).to(tl.int64)
        if expert < LOCAL:
            _few_gate_up(x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert, column,
                         TOP_K, FFN, K, TILED, ACTIVATION, ON_INPUT, BLOCK_N, STEP, STAGES, RUN)  # fmt: skip


def launch_few_gate_up(
    x: torch.Tensor,
    gate_up: torch.Tensor | Fp8Block,
    experts: torch.Tensor,
    weights: torch.Tensor,
    tile: FewTile,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> torch.Tensor:
    """hidden [N, ffn] in slot order, times the weight of the slot. Of x's dtype, so that down has registers for more
    rows a program; over fp8_block float32, which is faster there. Rows of slots without an expert here are not written.

    x: 16 bits [tokens, hidden]; gate_up: [num_experts, 2 * ffn, hidden]; experts, weights: [tokens, top_k]; all as in
    `launch_few`, as are the errors.
    """
    (_, both, k), several = matrices(gate_up), experts.shape[0] > 1
    ffn = both // 2
    dtype = x.dtype if isinstance(gate_up, torch.Tensor) else torch.float32
    hidden = torch.empty(experts.numel(), ffn, dtype=dtype, device=x.device)
    expert_map, num_global, here = lookup(local)
    launch(
        _few_gate_up_kernel, grid_of(experts.numel(), cdiv(ffn, tile.block_n), several),
        x, *operands(gate_up), epilogue.gate_up_bias, hidden, experts, expert_map, weights, x.stride(0), num_global,
        LOCAL=here, TOP_K=experts.shape[1], FFN=ffn, K=k, TILED=is_tiled(gate_up), ACTIVATION=epilogue.constants,
        ON_INPUT=epilogue.weights_on_input, **tile.constants(), RUN=unrolled(cdiv(k, tile.step), 1, tile, gate_up),
        SEVERAL=several, **launch_options(x.device),
    )  # fmt: skip
    return hidden
