"""Down of the output-centric path: a program owns a token and a few outputs, and sums over the token's experts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .e4m3 import operands
from .epilogue import PLAIN, Epilogue
from .few_parts import APART, SCALED_APART, _products, _scales, grid_of, owned, unrolled
from .local import Local, expert_of, lookup
from .tile_types import FewTile
from .tiled import along, is_tiled, matrices, places


@triton.jit
def _few_step(
    experts, expert_map, num_global, down, scales, slot, i, n, k, block,
    LOCAL: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TILED: tl.constexpr,
    STEP: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows n of the i-th step of a token's slots, [BLOCK_N, STEP], and their scales, if there are; 0 outside, and for a
    slot without an expert here. slot: the first one of the token. WHOLE: nothing of any step is outside."""
    start = i % STEPS * STEP
    if LOCAL is None:
        expert = tl.load(experts + slot + i // STEPS)
        end = K
    else:
        expert = expert_of(experts, expert_map, num_global, slot + i // STEPS, True, LOCAL)
        end = tl.where(expert < LOCAL, K, 0)
    if TILED:
        rows = down + expert.to(tl.int64) * (N * K) + places(n, k, K, True) + along(start, True)
    else:
        rows = down + (expert.to(tl.int64) * N + n[:, None]) * K + k[None, :] + start
    tile = tl.load(rows) if WHOLE else tl.load(rows, mask=(n < N)[:, None] & (k < end - start)[None, :], other=0.0)
    if scales is None:
        return tile, tile  # stands in
    else:
        return tile, _scales(scales, expert, block, start, end, STEP, N, K)


@triton.jit
def _few_values(
    experts, expert_map, num_global, hidden, slot, i, n, k,
    LOCAL: tl.constexpr, STEPS: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """What they meet, [BLOCK_N, STEP] and the same in each row, or [STEP]; 0 outside, and for a slot without an expert
    here, of which nothing is there.

    Of weights of 16 bits each thread loads its own values: those that are loaded once pass through shared memory, with
    two barriers a step. Of 8 bits it would load twice as many for the same bytes of weights, which costs more.
    """
    own = slot + i // STEPS
    start = i % STEPS * STEP
    if SCALED:
        inside = k
        place = hidden + own * K + start + k
    else:
        inside = k[None, :]
        place = hidden + own * K + start + k[None, :] + (n * 0)[:, None]
    if LOCAL is not None:
        end = tl.where(expert_of(experts, expert_map, num_global, own, True, LOCAL) < LOCAL, K, 0)
        return tl.load(place, mask=inside < end - start, other=0.0)
    elif K % STEP == 0:
        return tl.load(place)
    else:
        return tl.load(place, mask=inside < K - start, other=0.0)


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
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TILED: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, RUN: tl.constexpr,
    SEVERAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[token] = sum over its experts here of down @ hidden, which is weighted already, and of the weighted bias.

    weights: of the biases; None where they have none. The first steps of a token are on their way since before the
    wait: the gate and up kernel waited for the routing before it let this one start.
    """
    STEPS: tl.constexpr = (K + STEP - 1) // STEP
    ALL: tl.constexpr = TOP_K * STEPS
    token, column = owned((N + BLOCK_N - 1) // BLOCK_N, SEVERAL)
    slot = token * TOP_K
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    block = column * BLOCK_N // 128
    k = tl.arange(0, STEP)  # [STEP]
    SCALED: tl.constexpr = scales is not None
    WHOLE: tl.constexpr = LOCAL is None and K % STEP == 0 and N % BLOCK_N == 0
    DEPTH: tl.constexpr = min(STAGES, ALL)
    tiles = ()
    for s in tl.static_range(DEPTH):
        tiles = tiles + (_few_step(experts, expert_map, num_global, down, scales, slot, s, n, k, block,
                                   LOCAL, STEPS, N, K, TILED, STEP, WHOLE),)  # fmt: skip
    biases = tl.zeros([BLOCK_N], dtype=tl.float32)
    if bias is not None:
        biases = _few_bias(bias, experts, expert_map, weights, num_global, slot, n, LOCAL, TOP_K, N, BLOCK_N)
    wait_for_previous(PDL)
    release_next(PDL)
    values = ()
    for s in tl.static_range(DEPTH):
        values = values + (
            _few_values(experts, expert_map, num_global, hidden, slot, s, n, k, LOCAL, STEPS, K, STEP, SCALED),
        )
    SUMMED: tl.constexpr = SCALED_APART if SCALED else APART
    total = tl.zeros([BLOCK_N, STEP // SUMMED], dtype=tl.float32)
    for first in tl.range(0, ALL, RUN):
        for j in tl.static_range(RUN):
            tile, tile_scales = tiles[0]
            products = _products(tile, values[0][None, :] if SCALED else values[0], SUMMED)
            if scales is not None:
                products *= tile_scales[None, :]
            total += products
            i = first + j + DEPTH
            step = tiles[0]
            own = values[0]
            if i < ALL:
                step = _few_step(experts, expert_map, num_global, down, scales, slot, i, n, k, block,
                                 LOCAL, STEPS, N, K, TILED, STEP, WHOLE)  # fmt: skip
                own = _few_values(experts, expert_map, num_global, hidden, slot, i, n, k,
                                  LOCAL, STEPS, K, STEP, SCALED)  # fmt: skip
            tiles = tiles[1:] + (step,)
            values = values[1:] + (own,)
    y_row = y + token.to(tl.int64) * N
    tl.store(y_row + n, (tl.sum(total, axis=1) + biases).to(y.dtype.element_ty), mask=n < N)


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
    """y [tokens, hidden], which it writes.

    hidden: [N, ffn] as `launch_few_gate_up` gives it, weighted already; weights are for the bias alone. down:
    [num_experts, hidden, ffn]; experts, weights: [tokens, top_k]; all as in `launch_few`, as are the errors.
    """
    (tokens, top_k), (_, n, k) = experts.shape, matrices(down)
    expert_map, num_global, here = lookup(local)
    launch(
        _few_down_kernel, grid_of(tokens, cdiv(n, tile.block_n), tokens > 1),
        hidden, *operands(down), epilogue.down_bias, y, experts, expert_map,
        None if epilogue.weights_on_input or epilogue.down_bias is None else weights, num_global,
        LOCAL=here, TOP_K=top_k, N=n, K=k, TILED=is_tiled(down), **tile.constants(),
        RUN=unrolled(cdiv(k, tile.step), top_k, tile, down), SEVERAL=tokens > 1, **launch_options(hidden.device),
    )  # fmt: skip
    return y
