"""Four-bit weights inside kernels: a word of eight columns becomes eight 16-bit numbers, in registers.

The matrix units take their left operand from registers, where each thread must hold certain columns of it. A sum over
columns may run in any order, so the columns of both operands are renamed until the columns of a word, and of four
words side by side, are those of one thread: no weight is exchanged. Activations are stored in that order
(`launch_permute`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..formats.four_bits import BLOCK, FourBits, with_margin
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from ..target import target_of
from .w4_ptx import INT4_BF16, INT4_F16, INT4_SCALES, MXFP4_BF16, MXFP4_F16, PREPARED_BF16, PREPARED_F16

UNIT = tl.constexpr(2.0**32)
"""What sums are multiplied by, if weights are unpacked to bfloat16: its exponents then hold the product of a scale and
what a number is too small by as it is cut out of its word, for scales of mxfp4 up to 2^33, of int4 up to 2^26."""


def padded(columns: int) -> int:
    """Columns of activations in the order of `launch_permute`: whole blocks."""
    return cdiv(columns, BLOCK) * BLOCK


@triton.jit
def natural(place):
    """The column at a place of the order: bits 6 to 0 of a place are jj ii tt h, of its column tt jj h ii. A thread
    has the columns of one tt."""
    j = place >> 5 & 3
    i = place >> 3 & 3
    t = place >> 1 & 3
    return place // 128 * 128 + (t << 5 | j << 3 | (place & 1) << 2 | i)


@triton.jit
def place_of(column):
    """The place of a column in the order: the inverse of `natural`."""
    t = column >> 5 & 3
    j = column >> 3 & 3
    h = column >> 2 & 1
    return column // 128 * 128 + (j << 5 | (column & 3) << 3 | t << 1 | h)


@triton.jit
def _exact(scales, TYPE: tl.constexpr, MXFP4: tl.constexpr, PTX: tl.constexpr):
    """The scales in float32, for numbers of bfloat16 that are to be / `UNIT`; of mxfp4 for PTX 2^126 as large."""
    exact = (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True) if MXFP4 else scales.to(tl.float32)
    if TYPE == tl.bfloat16:  # noqa: SIM300
        exact *= 19807040628566084398385987584.0 if PTX and MXFP4 else 2.3283064365386963e-10  # 2^94, 2^-32
    return exact


@triton.jit
def numbers_of(words, scales, MXFP4: tl.constexpr, PREPARED: tl.constexpr):
    """The numbers of each word [..., 1, 1] in float32 [..., i, h], column i + 4 h, as any GPU computes them."""
    i = tl.arange(0, 4)[:, None]
    h = tl.arange(0, 2)[None, :]
    if MXFP4 and PREPARED:  # as in w4_ptx.py
        low = words.to(tl.uint32, bitcast=True)
        turned = low >> 3 * i.to(tl.uint32) | low << (32 - 3 * i & 31).to(tl.uint32)
        both = tl.where(i == 3, (low & 0x1B001B) * 0x1084, turned) >> 16 * h.to(tl.uint32)
        codes = (both >> 12 & 8 | both >> 6 & 7).to(tl.int32)
    else:
        codes = words >> 4 * i + 16 * h & 0xF
    if MXFP4:
        exponent = codes >> 1 & 3
        twice = tl.where(exponent == 0, codes & 1, (2 + (codes & 1)) << (exponent - 1 & 3))
        return tl.where(codes > 7, -twice, twice).to(tl.float32) * 0.5 * scales
    else:
        return (codes - 8).to(tl.float32) * scales


@triton.jit
def _each(scales, BLOCKS: tl.constexpr):
    """Scales [rows, groups] of each word [rows, BLOCKS, t, j]."""
    ROWS: tl.constexpr = scales.shape[0]
    GROUPS: tl.constexpr = scales.shape[1] // BLOCKS  # of a block: 4, 2 or 1
    scales = scales.reshape(ROWS, BLOCKS, GROUPS, 1).broadcast_to(ROWS, BLOCKS, GROUPS, 4 // GROUPS)
    return scales.reshape(ROWS, BLOCKS, 4, 1).broadcast_to(ROWS, BLOCKS, 4, 4)


@triton.jit
def unpack_words(
    words, scales, TYPE: tl.constexpr, MXFP4: tl.constexpr, PREPARED: tl.constexpr, PTX: tl.constexpr
):  # fmt: skip
    """Weights [rows, columns] of TYPE in the order of `launch_permute`, times their scales; in bfloat16: / UNIT.

    words: int32 [rows, columns / 8]; scales: [rows, columns / group], e8m0 as uint8 or 16 bits. columns: whole blocks.
    """
    ROWS: tl.constexpr = words.shape[0]
    BLOCKS: tl.constexpr = words.shape[1] // 16
    words = words.reshape(ROWS, BLOCKS, 4, 4)  # [ROWS, BLOCKS, t, j]
    if PTX:
        BF16: tl.constexpr = TYPE == tl.bfloat16  # noqa: SIM300
        if MXFP4 or not BF16:
            MXFP4_ASM: tl.constexpr = MXFP4_BF16 if BF16 else MXFP4_F16
            PREPARED_ASM: tl.constexpr = PREPARED_BF16 if BF16 else PREPARED_F16
            asm: tl.constexpr = (PREPARED_ASM if PREPARED else MXFP4_ASM) if MXFP4 else INT4_F16
            bits = _exact(scales, TYPE, MXFP4, PTX).to(TYPE).to(tl.uint16, bitcast=True).to(tl.uint32) * 0x10001
            c0, c4, c1, c5, c2, c6, c3, c7 = tl.inline_asm_elementwise(
                asm, "=h,=h,=h,=h,=h,=h,=h,=h,r,r", [words, _each(bits, BLOCKS)],
                dtype=(tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                is_pure=True, pack=1,
            )  # fmt: skip
        else:
            low, high, zero = tl.inline_asm_elementwise(
                INT4_SCALES, "=r,=r,=r,h", [scales.to(tl.bfloat16).to(tl.int16, bitcast=True)],
                dtype=(tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
            c0, c4, c1, c5, c2, c6, c3, c7 = tl.inline_asm_elementwise(
                INT4_BF16, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r",
                [words, _each(low, BLOCKS), _each(high, BLOCKS), _each(zero, BLOCKS)],
                dtype=(tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                is_pure=True, pack=1,
            )  # fmt: skip
        even = tl.join(tl.join(c0, c4), tl.join(c2, c6))  # [ROWS, BLOCKS, t, j, h, i >> 1]
        odd = tl.join(tl.join(c1, c5), tl.join(c3, c7))
        every = tl.join(even, odd).permute(0, 1, 3, 5, 6, 2, 4).reshape(ROWS, BLOCKS * 128)
        return every.to(TYPE, bitcast=True)
    else:
        each = _each(_exact(scales, TYPE, MXFP4, PTX), BLOCKS).reshape(ROWS, BLOCKS, 4, 4, 1, 1)
        numbers = numbers_of(words.reshape(ROWS, BLOCKS, 4, 4, 1, 1), each, MXFP4, PREPARED)
        return numbers.permute(0, 1, 3, 4, 2, 5).reshape(ROWS, BLOCKS * 128).to(TYPE)


@triton.jit
def settled(total, PTX: tl.constexpr):
    """total, once all products in it are done. Those of Hopper's matrix units run on while the next step is unpacked,
    into the very registers that they read: Triton 3.6 waits for the first of a step's products alone. A sum that is
    used in its own step is waited for."""
    if PTX == 9:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [total], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return total


def operands(weights: FourBits) -> tuple[torch.Tensor, torch.Tensor]:
    """What kernels take for weights: (int32 words, scales), of prepared weights with their margins."""
    if weights.is_prepared:
        return with_margin(weights.values, BLOCK // 8), with_margin(weights.scales, BLOCK // weights.least)
    return weights.values.view(torch.int32), weights.scales


def constants(weights: FourBits) -> dict[str, Any]:
    """What kernels know of the format: the columns of a scale, whether the weights are prepared, and the major compute
    capability of a GPU that takes PTX, 0 for others."""
    group = weights.least if weights.is_prepared else weights.group
    return {"GROUP": group, "PREPARED": weights.is_prepared, "PTX": target_of(weights.device).nvidia_major}


@triton.jit
def _permute_kernel(x, permuted, stride_token, K: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    """One program for WIDTH places of a token."""
    wait_for_previous(PDL)
    release_next(PDL)
    PADDED: tl.constexpr = (K + 127) // 128 * 128
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)  # [WIDTH]
    column = natural(place)
    values = tl.load(x + token * stride_token + column, mask=column < K, other=0.0)
    tl.store(permuted + token * PADDED + place, values, mask=place < PADDED)


def launch_permute(x: torch.Tensor) -> torch.Tensor:
    """x [tokens, hidden] in the order in which weights of four bits are multiplied, [tokens, padded(hidden)]: place p
    holds column `natural(p)`, or 0 where there is none."""
    tokens, k = x.shape
    permuted = torch.empty(tokens, padded(k), dtype=x.dtype, device=x.device)
    width = min(next_power_of_2(padded(k)), 1024 if x.is_cuda else 2**16)
    launch(
        _permute_kernel, (tokens, cdiv(padded(k), width)),
        x, permuted, x.stride(0), K=k, WIDTH=width, **launch_options(x.device),
    )  # fmt: skip
    return permuted
