"""e4m3 numbers inside kernels: unpacking weights on any GPU, and quantising rows of activations by groups of 128.

A GPU with fp8 units takes e4m3 as it is. Elsewhere a kernel gets the bits as uint8 and unpacks them by shifts and one
exact multiplication.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..pdl import launch_options, release_next, wait_for_previous

GROUP = 128
"""Columns of a row that share a scale, as in the blocks of the weights."""


@triton.jit
def unpack_e4m3(raw, TYPE: tl.constexpr):
    """Weights of any shape as TYPE, exactly: e4m3, or its bits as uint8. Not for NaN, which no weight is."""
    if raw.dtype == tl.uint8:
        wide = raw.to(tl.int32)
        # Sign, exponent and mantissa where float32 has them; its exponent is then 120 too small.
        bits = ((wide & 0x80) << 24) | ((wide & 0x7F) << 20)
        return (bits.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(TYPE)
    else:
        return raw.to(tl.float32).to(TYPE)


@triton.jit
def quantize_groups(values, AXIS: tl.constexpr):
    """(e4m3 numbers, float32 scales) of float32 values [rows, columns], one scale per row if AXIS is 1, else column."""
    scale = tl.maximum(tl.max(tl.abs(values), axis=AXIS), 1e-12) * (1.0 / 448.0)
    return (values / tl.expand_dims(scale, AXIS)).to(tl.float8e4nv), scale


@triton.jit(do_not_specialize=["num_tokens"])
def _quantize_rows_kernel(
    # operands
    x, values, scales,
    # shape
    num_tokens, stride_token, K: tl.constexpr,
    # tile
    BLOCK_T: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """values [num_tokens, K] and scales [num_tokens, K / GROUP] of x, one program for BLOCK_T rows of a group."""
    wait_for_previous(PDL)
    release_next(PDL)
    group = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    column = group * GROUP + tl.arange(0, GROUP)  # [GROUP]
    inside = token < num_tokens
    place = token.to(tl.int64)[:, None] * stride_token + column[None, :]
    rows = tl.load(x + place, mask=inside[:, None], other=0.0).to(tl.float32)  # [BLOCK_T, GROUP]
    quantized, scale = quantize_groups(rows, 1)
    tl.store(values + token.to(tl.int64)[:, None] * K + column[None, :], quantized, mask=inside[:, None])
    tl.store(scales + token * (K // GROUP) + group, scale, mask=inside)


def launch_quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 [tokens, columns], float32 scales [tokens, columns / 128]) of x; columns a multiple of 128."""
    tokens, k = x.shape
    values = torch.empty((tokens, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((tokens, k // GROUP), dtype=torch.float32, device=x.device)
    block_t = min(triton.next_power_of_2(tokens), 16) if x.is_cuda else triton.next_power_of_2(tokens)
    _quantize_rows_kernel[(triton.cdiv(tokens, block_t), k // GROUP)](
        x, values, scales, tokens, x.stride(0), K=k, BLOCK_T=block_t, GROUP=GROUP, **launch_options(x.device)
    )
    return values, scales
