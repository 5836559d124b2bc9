"""e4m3 numbers inside kernels: unpacking weights on any GPU, and quantising rows of activations by groups of 128.

A GPU with fp8 units takes e4m3 as it is. Elsewhere a kernel gets the bits as uint8 and unpacks them by shifts and one
exact multiplication.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from ..target import INTERPRETER, target_of

GROUP = 128
"""Columns of a row that share a scale, as in the blocks of the weights."""


def operands(weights: torch.Tensor | Fp8Block) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What kernels take for weights: (values, scales); bits where the GPU does not take e4m3, no scales for 16 bits."""
    if isinstance(weights, torch.Tensor):
        return weights, None
    target = target_of(weights.device)
    native = target.has_fp8 or target == INTERPRETER
    return weights.values if native else weights.raw(), weights.scales


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
def quantize_groups(values):
    """(e4m3 numbers [rows, columns], float32 scales [rows]) of float32 values [rows, columns]."""
    scale = tl.maximum(tl.max(tl.abs(values), axis=1), 1e-12) * (1.0 / 448.0)
    return (values / scale[:, None]).to(tl.float8e4nv), scale


@triton.jit
def _quantize_rows_kernel(
    # operands
    x, values, scales,
    # shape
    stride_token, K: tl.constexpr,
    # tile
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """values [tokens, K] and scales [tokens, K / WIDTH] of x, one program for GROUPS groups of a token."""
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)  # [GROUPS]
    inside = group < K // WIDTH
    column = group[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]  # [GROUPS, WIDTH]
    row = tl.load(x + token * stride_token + column, mask=inside[:, None], other=0.0).to(tl.float32)
    quantized, scale = quantize_groups(row)
    tl.store(values + token * K + column, quantized, mask=inside[:, None])
    tl.store(scales + token * (K // WIDTH) + group, scale, mask=inside)


def launch_quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3 [tokens, columns], float32 scales [tokens, columns / 128]) of x; columns a multiple of 128."""
    tokens, k = x.shape
    values = torch.empty(tokens, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(tokens, k // GROUP, dtype=torch.float32, device=x.device)
    groups = min(next_power_of_2(k // GROUP), 16 if x.is_cuda else 256)
    launch(
        _quantize_rows_kernel, (tokens, cdiv(k // GROUP, groups)),
        x, values, scales, x.stride(0), K=k, GROUPS=groups, WIDTH=GROUP, **launch_options(x.device),
    )  # fmt: skip
    return values, scales
