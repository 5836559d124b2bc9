"""What both kernels of the output-centric path over prepared weights of four bits share, and activations as planes.

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
from .tile_types import FewTile
from .w4 import padded

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


def _constants(weights: FourBits, tile: FewTile) -> dict[str, int]:
    assert weights.is_prepared
    return {"GROUP": weights.least, "EIGHTS": tile.block_n // ROWS, "STEP": tile.step // BLOCK,
            "num_warps": tile.num_warps}  # fmt: skip
