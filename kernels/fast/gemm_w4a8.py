"""The sums of the expert GEMMs over weights of four bits with 8-bit activations (w4a8.py), for gemm_w4.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .gemm import _load, _multiply
from .w4 import settled
from .w4a8 import CODE, SUMS, unpack_bytes


@triton.jit
def _scaled(total, a_scales, in_rows, group_scales, K: tl.constexpr, STEP: tl.constexpr, SWAP: tl.constexpr):
    """total, [WIDTH, rows] if SWAP, times the scale of each row; of int4 less 8, the zero of its codes, times the sums
    of the rows' numbers by blocks, which is a small product with the scales of the blocks.

    a_scales: pointers [rows] to what `launch_quantize_w4` gives; group_scales: pointers [WIDTH] to the scales of each
    weight row in int4, STEP apart; None in mxfp4.
    """
    if group_scales is not None:
        BLOCKS: tl.constexpr = (K + 127) // 128
        SPAN: tl.constexpr = triton.next_power_of_2(BLOCKS) if BLOCKS > 16 else 16  # the least that tl.dot takes
        block = tl.arange(0, SPAN)
        inside = (block < BLOCKS)[None, :]
        scales = tl.load(group_scales[:, None] + block[None, :] * STEP, mask=inside, other=0.0)
        sums = tl.load(a_scales[:, None] + SUMS + block[None, :], mask=in_rows[:, None] & inside, other=0.0)
        # Times 8, scales stay what bfloat16 holds; sums do not fit it, in two parts they nearly do.
        scales = (scales.to(tl.float32) * 8.0).to(tl.bfloat16)
        high = sums.to(tl.bfloat16)
        low = (sums - high.to(tl.float32)).to(tl.bfloat16)
        zero = _multiply(high, scales, tl.zeros_like(total), SWAP)
        total = total * CODE - _multiply(low, scales, zero, SWAP)
    scale = tl.load(a_scales, mask=in_rows, other=0.0)
    return total * (scale[None, :] if SWAP else scale[:, None])


@triton.jit
def product_a8(
    # operands
    a, a_scales, in_rows, a_tail, a_tail_scales, in_tail, weights, scales, matrix, n, in_n,
    # shape
    N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
    # format
    GROUP: tl.constexpr, PTX: tl.constexpr,
    # tile
    HEIGHT: tl.constexpr, TAIL: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """As `_unpacked_product` in gemm_w4.py, of e4m3 rows in the order of `launch_quantize_w4` and bytes of prepared
    weights. a_scales, a_tail_scales: pointers to the scale of each row."""
    MXFP4: tl.constexpr = scales.dtype.element_ty == tl.uint8
    BLOCKS: tl.constexpr = (K + 127) // 128
    GROUPS: tl.constexpr = 128 // GROUP
    k = tl.arange(0, 128)  # [128]
    eight = matrix.to(tl.int64) * (N // 8) + n // 8  # [WIDTH]
    b = weights + (eight * (BLOCKS * 512) + n % 8 * 64)[:, None] + tl.arange(0, 64)[None, :]
    group_scales = scales + eight * (BLOCKS * GROUPS * 8) + n % 8 * GROUPS
    b_scales = group_scales[:, None] + tl.arange(0, GROUPS)[None, :]
    a = a[:, None] + k[None, :]  # [HEIGHT, 128]
    total = tl.zeros([WIDTH, HEIGHT] if SWAP else [HEIGHT, WIDTH], dtype=tl.float32)
    tail = total  # stands in where there is none
    if TAIL > 0:
        a_tail = a_tail[:, None] + k[None, :]  # [TAIL, 128]
        tail = tl.zeros([WIDTH, TAIL] if SWAP else [TAIL, WIDTH], dtype=tl.float32)
    for _ in tl.range(0, BLOCKS, num_stages=STAGES):
        b_tile = _load(b, in_n, in_n, EVEN, True)
        b += 512
        b_scale = _load(b_scales, in_n, in_n, EVEN, True)
        b_scales += GROUPS * 8
        a_tile = _load(a, in_rows, in_rows, False, True)
        a += 128
        numbers = unpack_bytes(b_tile, b_scale, MXFP4, PTX)
        if MXFP4:
            total = _multiply(a_tile, numbers, total, SWAP)
        else:
            scale = tl.max(b_scale.to(tl.float32), axis=1)  # all are the same
            scale = scale[:, None] if SWAP else scale[None, :]
            total += _multiply(a_tile, numbers, tl.zeros_like(total), SWAP) * scale
        if TAIL > 0:
            tail_tile = _load(a_tail, in_tail, in_tail, False, True)
            a_tail += 128
            if MXFP4:
                tail = settled(_multiply(tail_tile, numbers, tail, SWAP), PTX)
            else:
                tail += _multiply(tail_tile, numbers, tl.zeros_like(tail), SWAP) * scale
        if MXFP4:
            total = settled(total, PTX)
    group_scales = None if MXFP4 else group_scales
    total = _scaled(total, a_scales, in_rows, group_scales, K, GROUPS * 8, SWAP)
    if TAIL > 0:
        tail = _scaled(tail, a_tail_scales, in_tail, group_scales, K, GROUPS * 8, SWAP)
    if SWAP:
        return total.T, tail.T
    else:
        return total, tail
