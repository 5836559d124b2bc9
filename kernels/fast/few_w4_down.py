"""Down of the output-centric path over four bits: a program owns a token and a few eights of outputs, and sums over
its experts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.four_bits import ROWS, FourBits
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .epilogue import PLAIN, Epilogue
from .few_parts import grid_of, owned
from .few_w4_parts import UNIT, _add, _constants, _tile
from .local import Local, expert_of, lookup
from .tile_types import FewTile
from .w4 import operands


@triton.jit
def _few_down_tile(
    down, scales, experts, expert_map, num_global, slot, eight, lane, start,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, BLOCKS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """`_tile` of the blocks from `start` on, and where they are [LANES]: those of a token's slots, one slot after the
    other. slot: the first; eight: [EIGHTS]."""
    block = start + lane // 32  # [LANES]
    inside = block < TOP_K * BLOCKS
    if LOCAL is None:
        expert = tl.load(experts + slot + block // BLOCKS, mask=inside, other=0).to(tl.int64)
    else:
        expert = expert_of(experts, expert_map, num_global, slot + block // BLOCKS, inside, LOCAL).to(tl.int64)
        inside = inside & (expert < LOCAL)
    matrix = expert[:, None] * (N // 8) + eight[None, :]
    in_rows = inside[:, None] & (eight < N // 8)[None, :]
    tile, scale = _tile(down, scales, matrix, block % BLOCKS, lane, in_rows, BLOCKS, OWN)
    return tile, scale, inside


@triton.jit(do_not_specialize=["num_global"])
def _few_down_w4_kernel(
    hidden, down, scales, bias, y, experts, expert_map, weights, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    EIGHTS: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr, SEVERAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[token] = sum over its experts here of down @ hidden, which is weighted already, and of the weighted bias.

    weights: of the biases; None where they have none. AHEAD: weights come a step ahead, for which 16 warps leave no
    registers.
    """
    MXFP4: tl.constexpr = scales.dtype.element_ty == tl.uint8
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    P: tl.constexpr = 8 if MXFP4 else 9
    BLOCKS: tl.constexpr = WORDS // 16
    token, column = owned((N // 8 + EIGHTS - 1) // EIGHTS, SEVERAL)
    slot = token * TOP_K
    eight = column * EIGHTS + tl.arange(0, EIGHTS)  # [EIGHTS]
    lane = tl.arange(0, 32 * STEP)  # [LANES]
    quad = lane[:, None, None] % 4 * 4 + tl.arange(0, 4)[None, None, :]
    total = tl.zeros([32 * STEP, EIGHTS], dtype=tl.float32)
    if AHEAD:
        # The gate and up kernel waited for the routing before it let this one start, so `experts` is there, and the
        # first weights can be on their way, while `hidden` is not.
        tile, scale, inside = _few_down_tile(
            down, scales, experts, expert_map, num_global, slot, eight, lane, 0, LOCAL, TOP_K, N, BLOCKS, 128 // GROUP
        )
    wait_for_previous(PDL)
    release_next(PDL)
    for start in tl.range(0, TOP_K * BLOCKS, STEP):
        loaded = _few_down_tile(
            down, scales, experts, expert_map, num_global, slot, eight, lane, start + STEP if AHEAD else start,
            LOCAL, TOP_K, N, BLOCKS, 128 // GROUP,
        )  # fmt: skip
        if not AHEAD:
            tile, scale, inside = loaded
        block = start + lane // 32  # [LANES]
        place = (slot + block // BLOCKS) * (P * WORDS) + block % BLOCKS * 16
        total = _add(total, tile, scale, hidden + place[:, None, None] + quad, inside, WORDS, MXFP4)
        if AHEAD:
            tile, scale, inside = loaded
    sums = tl.sum(tl.sum(tl.reshape(total, (STEP, 8, 4, EIGHTS)), axis=2), axis=0) * UNIT  # [8, EIGHTS]
    n = eight[None, :] * 8 + tl.arange(0, 8)[:, None]
    if bias is not None:
        for j in tl.static_range(TOP_K):
            rows = N
            if LOCAL is None:
                expert = tl.load(experts + slot + j).to(tl.int64)
            else:
                expert = expert_of(experts, expert_map, num_global, slot + j, True, LOCAL).to(tl.int64)
                rows = tl.where(expert < LOCAL, N, 0)
            own = tl.load(bias + expert * N + n, mask=n < rows, other=0.0).to(tl.float32)
            if weights is not None:
                own = tl.where(n < rows, own * tl.load(weights + slot + j).to(tl.float32), 0.0)
            sums += own
    tl.store(y + token.to(tl.int64) * N + n, sums.to(y.dtype.element_ty), mask=n < N)


def launch_few_down_w4(
    hidden: torch.Tensor,
    down: FourBits,
    experts: torch.Tensor,
    weights: torch.Tensor,
    y: torch.Tensor,
    tile: FewTile,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> torch.Tensor:
    """y [tokens, hidden], which it writes.

    hidden: planes as `launch_few_gate_up_w4` gives them, weighted already, and so weights are for the bias alone. Other
    arguments and errors as in `launch_few_w4`.
    """
    (tokens, top_k), (_, n, k) = experts.shape, down.shape
    constants = _constants(down, tile)
    expert_map, num_global, here = lookup(local)
    launch(
        _few_down_w4_kernel, grid_of(tokens, cdiv(n // ROWS, constants["EIGHTS"]), tokens > 1),
        hidden, *operands(down), epilogue.down_bias, y, experts, expert_map,
        None if epilogue.weights_on_input or epilogue.down_bias is None else weights, num_global,
        LOCAL=here, TOP_K=top_k, N=n, K=k, AHEAD=tile.num_warps <= 8, SEVERAL=tokens > 1, **constants,
        **launch_options(hidden.device),
    )  # fmt: skip
    return y
