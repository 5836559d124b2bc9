"""The output-centric path of `fast` over prepared weights of four bits: as few.py, with the same two kernels.

Sums are float32, without matrix units. A weight has to cost few instructions: one mask cuts its bits out of a word, and
what is left is a float32 as it lies there, too small by a power of two that goes by its place. Activations make up for
it: they come as planes, float32 [P, words], of which plane i holds column i of each word of eight columns. int4 has one
plane more, with what the zero point of its codes adds to the products of each word. All sums are too small by `UNIT`.

Eight rows of prepared weights lie together, and so a program has eights of rows: its thread number l mod 32 reads the
four words of 32 columns of row l / 4 mod 8, for which there is one scale, from the block of 128 columns number l / 32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.four_bits import BLOCK, ROWS, FourBits
from ..formats.mxfp4 import Mxfp4
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .epilogue import PLAIN, Epilogue, activate
from .few_parts import grid_of, owned
from .local import Local, expert_of, lookup
from .tile_types import FewTile, FewTiles
from .w4 import operands, padded

UNIT = tl.constexpr(2.0**64)


@triton.jit
def _column(words, i: tl.constexpr, MXFP4: tl.constexpr):
    """Column i of prepared words: of mxfp4 the number * 2^-126, of int4 the code * 2^(place - 149), as exponents 0 and
    1 of float32 have the same step."""
    if MXFP4:  # as in w4_ptx.py
        word = words.to(tl.uint32, bitcast=True)
        if i % 4 == 3:
            word = (word & 0x1B001B) * 0x1084
        turn: tl.constexpr = 3 * (i % 4) % 9 + (0 if i >= 4 else 16)
        if turn > 0:
            word = word >> turn | word << (32 - turn)
        return (word & 0x81C00000).to(tl.float32, bitcast=True)
    else:
        place: tl.constexpr = 4 * i if i < 6 else 4 * i - 8
        word = words if i < 6 else words >> 8
        return (word & (0xF << place)).to(tl.float32, bitcast=True)


@triton.jit
def _planar(values, i, MXFP4: tl.constexpr):
    """float32 activations of columns i as planes hold them: * 2^62, or * 2^(85 - place)."""
    if MXFP4:
        return values * 4611686018427387904.0
    else:
        place = 4 * i - tl.where(i < 6, 0, 8)
        return values * ((127 + 85 - place) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _zero_points(values, AXIS: tl.constexpr):
    """What the zero point of int4 adds to the products of words, whose eight columns lie along that axis."""
    return tl.sum(values, axis=AXIS) * 4.336808689942018e-19  # 8 / 2^64


@triton.jit
def _planes_kernel(
    x, planes, stride_token, K: tl.constexpr, MXFP4: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr
):
    """One program for WIDTH words of a token."""
    wait_for_previous(PDL)
    release_next(PDL)
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    token = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    i = tl.arange(0, 8)  # [8]
    column = word[:, None] * 8 + i[None, :]
    values = tl.load(x + token * stride_token + column, mask=column < K, other=0.0).to(tl.float32)
    own = planes + token * ((8 if MXFP4 else 9) * WORDS)
    place = i[None, :] * WORDS + word[:, None]
    tl.store(own + place, _planar(values, i[None, :], MXFP4), mask=(word < WORDS)[:, None])
    if not MXFP4:
        tl.store(own + 8 * WORDS + word, _zero_points(values, 1), mask=word < WORDS)


@triton.jit
def _add(total, words, scales, planes, inside, WORDS: tl.constexpr, MXFP4: tl.constexpr):
    """total [LANES, EIGHTS] with the products of words [LANES, EIGHTS, 4], of which four share a scale, and planes
    (pointers to the first, [LANES, 1, 4]) where inside [LANES]."""
    inside = inside[:, None, None]
    if MXFP4:
        exact = (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True)  # 2^(scale - 127)
        part = tl.zeros([1, 1, 1], dtype=tl.float32)
    else:
        exact = scales.to(tl.float32)
        part = -tl.load(planes + 8 * WORDS, mask=inside, other=0.0)
    for i in tl.static_range(8):
        part = part + _column(words, i, MXFP4) * tl.load(planes + i * WORDS, mask=inside, other=0.0)
    return total + tl.sum(part, axis=2) * exact


@triton.jit
def _tile(
    weights, scales, matrix, block, lane, inside, BLOCKS: tl.constexpr, OWN: tl.constexpr
):  # fmt: skip
    """(words [LANES, EIGHTS, 4], scales [LANES, EIGHTS]) where inside. matrix: int64 [LANES or 1, EIGHTS], eights of
    rows, of so many BLOCKS; block: [LANES]; OWN: scales that a row has in a block."""
    words = (matrix * (BLOCKS * 128))[:, :, None] + (block * 128 + lane % 32 * 4)[:, None, None]
    part = block * (8 * OWN) + lane // 4 % 8 * OWN + lane % 4 * OWN // 4  # [LANES]
    # Without the hint a thread would load the scales of several lanes, and exchange them through shared memory.
    place = tl.max_contiguous(matrix * (BLOCKS * 8 * OWN) + part[:, None], [1, 1])
    tile = tl.load(weights + words + tl.arange(0, 4)[None, None, :], mask=inside[:, :, None], other=0)
    return tile, tl.load(scales + place, mask=inside, other=0.0)


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


def launch_planes(x: torch.Tensor, weights: FourBits) -> torch.Tensor:
    """Planes of x [tokens, hidden] for weights of that format, float32 [tokens, 8 or 9, words]; words: of whole blocks
    of columns."""
    tokens, k = x.shape
    mxfp4, words = isinstance(weights, Mxfp4), padded(k) // 8
    planes = torch.empty(tokens, 8 if mxfp4 else 9, words, dtype=torch.float32, device=x.device)
    width = min(next_power_of_2(words), 128 if x.is_cuda else 2**16)
    launch(
        _planes_kernel, (tokens, cdiv(words, width)),
        x, planes, x.stride(0), K=k, MXFP4=mxfp4, WIDTH=width, **launch_options(x.device),
    )  # fmt: skip
    return planes


def launch_few_w4(
    planes: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: FourBits,
    down: FourBits,
    tiles: FewTiles,
    y: torch.Tensor,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> None:
    """Writes y [tokens, hidden]; planes: of `launch_planes`; experts, weights: [tokens, top_k]."""
    hidden = launch_few_gate_up_w4(planes, gate_up, experts, weights, tiles.gate_up, epilogue, local)
    launch_few_down_w4(hidden, down, experts, weights, y, tiles.down, epilogue, local)


def _constants(weights: FourBits, tile: FewTile) -> dict[str, int]:
    assert weights.is_prepared
    return {"GROUP": weights.least, "EIGHTS": tile.block_n // ROWS, "STEP": tile.step // BLOCK,
            "num_warps": tile.num_warps}  # fmt: skip


def launch_few_gate_up_w4(
    planes: torch.Tensor,
    gate_up: FourBits,
    experts: torch.Tensor,
    weights: torch.Tensor,
    tile: FewTile,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> torch.Tensor:
    """Planes [N, 8 or 9, words] of hidden in slot order, times the weight of the slot."""
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
    """y [tokens, hidden], which it writes; hidden is weighted already, and weights are for the bias alone."""
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
