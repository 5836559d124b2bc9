"""Four-bit weights as eight-bit numbers inside kernels, and activations quantised for them.

Both formats are exact in eight bits: mxfp4 with its scales as e5m2, whose exponents hold them, and the codes of int4 as
e4m3. As in w4.py, columns of both operands are renamed until those of a word, here four to a register, are those of one
thread. Rows have one scale each: e4m3 numbers keep their accuracy over 15 powers of two, so that scales for fewer
columns would gain little, and cost an instruction a number of each product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.four_bits import FourBits
from ..formats.int4 import Int4
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .w4 import numbers_of, operands, padded
from .w4_ptx import INT4_E4M3, MXFP4_E5M2

CODE = tl.constexpr(2.0**9)
"""What codes of int4 are too small by as e4m3 numbers."""
SUMS = tl.constexpr(4)
"""Where the sums of a row begin, behind its scale: at whole 16 bytes, as rows do."""
LOWEST, HIGHEST = tl.constexpr(112), tl.constexpr(128)
"""The scales of mxfp4 with which all numbers are e5m2 ones, 2^-15 to 2^1; others are taken for the nearest of them."""


@triton.jit
def natural_a8(place):
    """The column at a place of the order: bits 6 to 0 of a place are jj h tt ii, of its column tt jj ii h. A thread
    has the columns of one tt."""
    j = place >> 5 & 3
    h = place >> 4 & 1
    t = place >> 2 & 3
    return place // 128 * 128 + (t << 5 | j << 3 | (place & 3) << 1 | h)


@triton.jit
def unpack_bytes(parts, scales, MXFP4: tl.constexpr, PTX: tl.constexpr):
    """Weights [rows, 128] in the order of `launch_quantize_w4`: of mxfp4 e5m2 numbers with their scales, of int4 their
    codes / CODE as e4m3 numbers.

    parts: uint8 [rows, 64], the bytes of prepared words; scales: [rows, groups], e8m0 as uint8 or 16 bits. mxfp4 wants
    the four bytes of a word side by side in a thread, as the left operand of a matrix instruction has them.
    """
    ROWS: tl.constexpr = parts.shape[0]
    parts = parts.reshape(ROWS, 4, 4, 4)  # [ROWS, t, j, i]
    if MXFP4:
        held = tl.minimum(tl.maximum(scales.to(tl.int32), LOWEST), HIGHEST)
        if PTX:
            bits = (held - 98 << 10) * 0x10001  # 2^14 times the scale in float16, twice
            each = bits.reshape(ROWS, 4, 1, 1).broadcast_to(ROWS, 4, 4, 4)
            even, odd = tl.inline_asm_elementwise(
                MXFP4_E5M2, "=r,=r,r,r,r,r,r", [parts, each], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
            )
            both = tl.join(even, odd).permute(0, 2, 4, 1, 3).reshape(ROWS, 128)
            return both.to(tl.float8e5, bitcast=True)
        else:
            words = tl.sum(parts.to(tl.int32) << 8 * tl.arange(0, 4), axis=3).reshape(ROWS, 4, 4, 1, 1)
            exact = (held << 23).to(tl.float32, bitcast=True).reshape(ROWS, 4, 1, 1, 1)
            numbers = numbers_of(words, exact.broadcast_to(ROWS, 4, 4, 1, 1), True, True)  # [ROWS, t, j, i, h]
            both = numbers.reshape(ROWS, 4, 4, 2, 2, 2).permute(0, 2, 4, 1, 5, 3).reshape(ROWS, 128)
            return both.to(tl.float8e5)
    else:
        if PTX:
            even, odd = tl.inline_asm_elementwise(
                INT4_E4M3, "=r,=r,r", [parts], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
            )
        else:
            even, odd = parts & 0xF, parts >> 4
        both = tl.join(even, odd).permute(0, 2, 4, 1, 3).reshape(ROWS, 128)
        return both.to(tl.float8e4nv, bitcast=True)


def byte_operands(weights: FourBits) -> tuple[torch.Tensor, torch.Tensor]:
    """What kernels take for prepared weights: (uint8 bytes of their words, scales), with their margins."""
    words, scales = operands(weights)
    return words.view(torch.uint8), scales


@triton.jit
def _quantize_kernel(
    x, values, scales, stride_row, K: tl.constexpr, SPAN: tl.constexpr, STRIDE: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """One program a row."""
    wait_for_previous(PDL)
    release_next(PDL)
    BLOCKS: tl.constexpr = (K + 127) // 128
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SPAN)
    column = natural_a8(place)
    numbers = tl.load(x + row * stride_row + column, mask=column < K, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(numbers), axis=0), 1e-12) * (1.0 / 448.0)
    quantized = (numbers / scale).to(tl.float8e4nv)
    tl.store(values + row * (BLOCKS * 128) + place, quantized, mask=place < BLOCKS * 128)
    scales += row * STRIDE
    tl.store(scales, scale)
    if STRIDE > 1:
        block = tl.arange(0, SPAN // 128)
        sums = tl.sum(quantized.to(tl.float32).reshape(SPAN // 128, 128), axis=1)
        tl.store(scales + SUMS + block, sums, mask=block < BLOCKS)


def launch_quantize_w4(x: torch.Tensor, weights: FourBits) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 [rows, padded(columns)], float32 [rows, 1 or more]) of x [rows, columns]: the numbers of a row in the order
    in which these weights are multiplied, and its scale; for int4 from column `SUMS` on also the sum of each 128 of the
    numbers."""
    rows, k = x.shape
    stride = SUMS.value + cdiv(k, 4 * 128) * 4 if isinstance(weights, Int4) else 1
    values = torch.empty(rows, padded(k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, stride, dtype=torch.float32, device=x.device)
    launch(
        _quantize_kernel, (rows,),
        x, values, scales, x.stride(0), K=k, SPAN=next_power_of_2(padded(k)), STRIDE=stride, **launch_options(x.device),
    )  # fmt: skip
    return values, scales
