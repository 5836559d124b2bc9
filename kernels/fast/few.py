"""The output-centric path of `fast`, for a few tokens: no schedule, no combine, no matrix units.

logits -> experts and weights -> gate_up, whose programs own a slot and a few neurons of its expert -> down, whose
programs own a token and a few outputs and sum over its k experts in registers. N = tokens * top_k slots; tokens that
share an expert read its weights twice, the second time from L2.
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
LONGEST, SCALED_LONGEST = 48, 32
"""The most steps that a loop holds one by one; with scales, or if it holds a part of them: some compilers run out of
registers for what they load ahead."""


@triton.jit
def owned(columns: tl.constexpr, SEVERAL: tl.constexpr):
    """(slot or token, column) of this program of a grid that `grid_of` gave."""
    if SEVERAL:
        return tl.program_id(0), tl.program_id(1)
    else:
        return tl.program_id(0) // columns, tl.program_id(0) % columns


def grid_of(rows: int, columns: int, several: bool) -> tuple[int, ...]:
    """The grid of programs that own a slot or token, of so many, and a column.

    Of one token, slot by slot, in one dimension: of two, the compiler takes fewer registers for what is on its way.
    several: the same column of all of them side by side: what two tokens that share an expert read of its weights comes
    from memory once, and once more from L2.
    """
    return (rows, columns) if several else (rows * columns,)


@triton.jit
def _scales(scales, matrix, n_block, start, end, STEP: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """The scales of a step of a row of blocks of a matrix in fp8_block, one for `SCALED_APART` columns, float32
    [STEP / SCALED_APART]. scales: float32 [matrices, N / 128, K / 128]."""
    block = tl.arange(0, STEP // SCALED_APART) * SCALED_APART // 128
    row = scales + (matrix * (N // 128) + n_block) * (K // 128) + start // 128
    return tl.load(row + block, mask=block * 128 < end - start, other=0.0)


@triton.jit
def _products(tile, values, APART: tl.constexpr):
    """Sums of APART neighbours, float32 [rows, STEP / APART], of a tile [rows, STEP] times values of its shape or
    [1, STEP]: fewer registers for the sums."""
    products = unpack_e4m3(tile, tl.float32) * values.to(tl.float32)
    if APART == 1:
        return products
    else:
        return tl.sum(tl.reshape(products, (products.shape[0], products.shape[1] // APART, APART)), axis=2)


@triton.jit
def _few_gate_up_step(
    row, gate, scales, expert, block, n, k, start,
    FFN: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A step of neurons n: gate's and up's weights [BLOCK_N, STEP], their scales, if there are, and x, [1, STEP] or
    [STEP] (see `_few_values`). WHOLE: nothing of any step is outside."""
    own = row if scales is not None else row[None, :]
    in_row = k if scales is not None else k[None, :]
    if WHOLE:
        gate_tile = tl.load(gate + start)
        up_tile = tl.load(gate + FFN * K + start)
        values = tl.load(own + start)
    else:
        inside = (n < FFN)[:, None] & (k < K - start)[None, :]
        gate_tile = tl.load(gate + start, mask=inside, other=0.0)
        up_tile = tl.load(gate + FFN * K + start, mask=inside, other=0.0)
        values = tl.load(own + start, mask=in_row < K - start, other=0.0)
    if scales is None:
        return gate_tile, up_tile, gate_tile, up_tile, values  # the tiles stand in
    else:
        gate_scales = _scales(scales, expert * 2, block, start, K, STEP, FFN, K)
        return gate_tile, up_tile, gate_scales, _scales(scales, expert * 2 + 1, block, start, K, STEP, FFN, K), values


@triton.jit
def _few_gate_up(
    x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert, column,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr, ON_INPUT: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """A few neurons of a slot, by its expert."""
    STEPS: tl.constexpr = (K + STEP - 1) // STEP
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    block = column * BLOCK_N // 128
    k = tl.arange(0, STEP)  # [STEP]
    row = x + (slot // TOP_K).to(tl.int64) * stride_token + k
    gate = gate_up + (expert * (2 * FFN) + n[:, None]) * K + k[None, :]  # [BLOCK_N, STEP]
    WHOLE: tl.constexpr = K % STEP == 0 and FFN % BLOCK_N == 0
    DEPTH: tl.constexpr = min(STAGES, STEPS) if STAGES > 1 else 0
    flying = ()
    for s in tl.static_range(DEPTH):
        flying = flying + (_few_gate_up_step(row, gate, scales, expert, block, n, k, s * STEP, FFN, K, STEP, WHOLE),)
    APART: tl.constexpr = 1 if scales is None else SCALED_APART
    gate_sum = tl.zeros([BLOCK_N, STEP // APART], dtype=tl.float32)
    up_sum = tl.zeros([BLOCK_N, STEP // APART], dtype=tl.float32)
    for first in tl.range(0, STEPS, RUN):
        for j in tl.static_range(RUN):
            i = first + j + DEPTH
            if DEPTH == 0:
                now = _few_gate_up_step(row, gate, scales, expert, block, n, k, i * STEP, FFN, K, STEP, WHOLE)
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
                    step = _few_gate_up_step(row, gate, scales, expert, block, n, k, i * STEP, FFN, K, STEP, WHOLE)
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
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    ON_INPUT: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, RUN: tl.constexpr,
    SEVERAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """hidden[slot] = act(gate, up) * weight of the slot, [N, FFN]; a slot without an expert here has none."""
    wait_for_previous(PDL)
    release_next(PDL)
    slot, column = owned((FFN + BLOCK_N - 1) // BLOCK_N, SEVERAL)
    if LOCAL is None:
        expert = tl.load(experts + slot).to(tl.int64)
        _few_gate_up(x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert, column,
                     TOP_K, FFN, K, ACTIVATION, ON_INPUT, BLOCK_N, STEP, STAGES, RUN)  # fmt: skip
    else:
        expert = expert_of(experts, expert_map, num_global, slot, True, LOCAL).to(tl.int64)
        if expert < LOCAL:
            _few_gate_up(x, gate_up, scales, bias, hidden, weights, stride_token, slot, expert, column,
                         TOP_K, FFN, K, ACTIVATION, ON_INPUT, BLOCK_N, STEP, STAGES, RUN)  # fmt: skip


@triton.jit
def _few_step(
    experts, expert_map, num_global, down, scales, slot, i, n, k, block,
    LOCAL: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr,
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
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
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
        tiles = tiles + (
            _few_step(
                experts, expert_map, num_global, down, scales, slot, s, n, k, block, LOCAL, STEPS, N, K, STEP, WHOLE
            ),
        )
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
                                 LOCAL, STEPS, N, K, STEP, WHOLE)  # fmt: skip
                own = _few_values(experts, expert_map, num_global, hidden, slot, i, n, k,
                                  LOCAL, STEPS, K, STEP, SCALED)  # fmt: skip
            tiles = tiles[1:] + (step,)
            values = values[1:] + (own,)
    y_row = y + token.to(tl.int64) * N
    tl.store(y_row + n, (tl.sum(total, axis=1) + biases).to(y.dtype.element_ty), mask=n < N)


def unrolled(steps: int, slots: int, tile: FewTile, weights: torch.Tensor | Fp8Block) -> int:
    """How many steps a loop holds one by one: all of them, or those of a part of a token's slots; one where only one is
    on its way."""
    if tile.stages == 1:
        return 1
    if steps * slots <= (LONGEST if isinstance(weights, torch.Tensor) else SCALED_LONGEST):
        return steps * slots
    return max(
        (part * steps for part in range(1, slots) if slots % part == 0 and part * steps <= SCALED_LONGEST), default=1
    )


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
    """hidden [N, ffn] in slot order, times the weight of the slot; experts, weights: [tokens, top_k]. Of x's dtype, so
    that down has registers for more rows a program; over fp8_block float32, which is faster there."""
    ffn, k, several = gate_up.shape[1] // 2, gate_up.shape[2], experts.shape[0] > 1
    dtype = x.dtype if isinstance(gate_up, torch.Tensor) else torch.float32
    hidden = torch.empty(experts.numel(), ffn, dtype=dtype, device=x.device)
    expert_map, num_global, here = lookup(local)
    launch(
        _few_gate_up_kernel, grid_of(experts.numel(), cdiv(ffn, tile.block_n), several),
        x, *operands(gate_up), epilogue.gate_up_bias, hidden, experts, expert_map, weights, x.stride(0), num_global,
        LOCAL=here, TOP_K=experts.shape[1], FFN=ffn, K=k, ACTIVATION=epilogue.constants,
        ON_INPUT=epilogue.weights_on_input, **tile.constants(), RUN=unrolled(cdiv(k, tile.step), 1, tile, gate_up),
        SEVERAL=several, **launch_options(x.device),
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
        _few_down_kernel, grid_of(tokens, cdiv(n, tile.block_n), tokens > 1),
        hidden, *operands(down), epilogue.down_bias, y, experts, expert_map,
        None if epilogue.weights_on_input or epilogue.down_bias is None else weights, num_global,
        LOCAL=here, TOP_K=top_k, N=n, K=k, **tile.constants(), RUN=unrolled(cdiv(k, tile.step), top_k, tile, down),
        SEVERAL=tokens > 1, **launch_options(hidden.device),
    )  # fmt: skip
    return y
