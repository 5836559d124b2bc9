"""Gate and up of the output-centric path over four bits: a program owns a slot and a few eights of neurons."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.four_bits import FourBits
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .epilogue import PLAIN, Epilogue, activate
from .few_parts import grid_of, owned
from .few_w4_parts import UNIT, _add, _constants, _planar, _tile, _zero_points
from .local import Local, expert_of, lookup
from .tile_types import FewTile
from .w4 import operands, padded


@triton.jit
def _few_gate_up_w4(
    planes, gate_up, scales, bias, hidden, weights, slot, expert, column,
    TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, ACTIVATION: tl.constexpr,
    ON_INPUT: tl.constexpr, EIGHTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Eights of neurons of a slot, by its expert."""
    MXFP4: tl.constexpr = scales.dtype.element_ty == tl.uint8
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    OUT_WORDS: tl.constexpr = (FFN + 127) // 128 * 16
    P: tl.constexpr = 8 if MXFP4 else 9
    BLOCKS: tl.constexpr = WORDS // 16
    eight = column * EIGHTS  # the first
    both = tl.arange(0, 2 * EIGHTS)  # [2 * EIGHTS]: gate, then up
    in_rows = eight + both % EIGHTS < FFN // 8
    matrix = ((expert * 2 + both // EIGHTS) * (FFN // 8) + eight + both % EIGHTS)[None, :]
    lane = tl.arange(0, 32 * STEP)  # [LANES]
    quad = lane[:, None, None] % 4 * 4 + tl.arange(0, 4)[None, None, :]
    own = planes + (slot // TOP_K) * (P * WORDS) + quad
    total = tl.zeros([32 * STEP, 2 * EIGHTS], dtype=tl.float32)
    for start in tl.range(0, BLOCKS, STEP):
        block = start + lane // 32
        inside = block < BLOCKS
        tile, scale = _tile(gate_up, scales, matrix, block, lane, inside[:, None] & in_rows[None, :], BLOCKS,
                            128 // GROUP)  # fmt: skip
        total = _add(total, tile, scale, own + (block * 16)[:, None, None], inside, WORDS, MXFP4)
    sums = tl.sum(tl.sum(tl.reshape(total, (STEP, 8, 4, 2 * EIGHTS)), axis=2), axis=0) * UNIT  # [8, 2 * EIGHTS]
    gate, up = tl.split(tl.permute(tl.reshape(sums, (8, 2, EIGHTS)), (0, 2, 1)))  # [8, EIGHTS]
    weight = tl.load(weights + slot).to(tl.float32)
    if ON_INPUT:
        gate *= weight
        up *= weight
    word = eight + tl.arange(0, EIGHTS)  # [EIGHTS]
    i = tl.arange(0, 8)[:, None]
    n = word[None, :] * 8 + i
    if bias is not None:
        gate += tl.load(bias + expert * (2 * FFN) + n, mask=n < FFN, other=0.0).to(tl.float32)
        up += tl.load(bias + expert * (2 * FFN) + FFN + n, mask=n < FFN, other=0.0).to(tl.float32)
    product = activate(gate, up, ACTIVATION)
    if not ON_INPUT:
        product *= weight
    product = tl.where(n < FFN, product, 0.0)
    out = hidden + slot * (P * OUT_WORDS)
    tl.store(out + i * OUT_WORDS + word[None, :], _planar(product, i, MXFP4))
    if not MXFP4:
        tl.store(out + 8 * OUT_WORDS + word, _zero_points(product, 0))


@triton.jit(do_not_specialize=["num_global"])
def _few_gate_up_w4_kernel(
    planes, gate_up, scales, bias, hidden, experts, expert_map, weights, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr, ON_INPUT: tl.constexpr, EIGHTS: tl.constexpr, STEP: tl.constexpr, SEVERAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """hidden[slot] = act(gate, up) * weight of the slot, as planes; a slot without an expert here has none."""
    wait_for_previous(PDL)
    release_next(PDL)
    slot, column = owned((FFN + 127) // 128 * 16 // EIGHTS, SEVERAL)
    if LOCAL is None:
        expert = tl.load(experts + slot).to(tl.int64)
        _few_gate_up_w4(planes, gate_up, scales, bias, hidden, weights, slot, expert, column,
                        TOP_K, FFN, K, GROUP, ACTIVATION, ON_INPUT, EIGHTS, STEP)  # fmt: skip
    else:
        expert = expert_of(experts, expert_map, num_global, slot, True, LOCAL).to(tl.int64)
        if expert < LOCAL:
            _few_gate_up_w4(planes, gate_up, scales, bias, hidden, weights, slot, expert, column,
                            TOP_K, FFN, K, GROUP, ACTIVATION, ON_INPUT, EIGHTS, STEP)  # fmt: skip


def launch_few_gate_up_w4(
    planes: torch.Tensor,
    gate_up: FourBits,
    experts: torch.Tensor,
    weights: torch.Tensor,
    tile: FewTile,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> torch.Tensor:
    """Planes float32 [N, 8 or 9, words] of hidden in slot order, times the weight of the slot.

    Those of slots without an expert here are not written. Arguments and errors as in `launch_few_w4`.
    """
    constants, (_, both, k) = _constants(gate_up, tile), gate_up.shape
    ffn, several = both // 2, experts.shape[0] > 1
    words = padded(ffn) // 8
    hidden = torch.empty(experts.numel(), planes.shape[1], words, dtype=torch.float32, device=planes.device)
    expert_map, num_global, here = lookup(local)
    launch(
        _few_gate_up_w4_kernel, grid_of(experts.numel(), words // constants["EIGHTS"], several),
        planes, *operands(gate_up), epilogue.gate_up_bias, hidden, experts, expert_map, weights, num_global,
        LOCAL=here, TOP_K=experts.shape[1], FFN=ffn, K=k, ACTIVATION=epilogue.constants,
        ON_INPUT=epilogue.weights_on_input, SEVERAL=several, **constants, **launch_options(planes.device),
    )  # fmt: skip
    return hidden
