"""Packed weights in Marlin's layout: tiles of 16 x 64 weights in the order in which a warp's threads hold them.

vLLM has a compiled op for this; here the same is done with PyTorch on vLLM's permutations, expert by expert, so that
the library of a quarter gigabyte that holds the op is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tritonmoe_bench.kernels.formats import Packed

FFN_STEP = 128
"""ffn is padded up to a multiple of this with weights of zero, as vLLM does."""


@dataclass(frozen=True)
class Marlin:
    """values: int32 [experts, columns / 16, 16 * rows * bits / 32]; scales: [experts, columns / group, rows]; ffn: with
    its padding."""

    values: torch.Tensor
    scales: torch.Tensor
    ffn: int


def scalar_type(quant: str) -> Any:
    """vLLM's name of a weight format's numbers."""
    from vllm.scalar_type import scalar_types

    types = {"fp8_block": scalar_types.float8_e4m3fn, "mxfp4": scalar_types.float4_e2m1f}
    return types.get(quant, scalar_types.uint4b8)


def gate_up(packed: Packed, dtype: torch.dtype) -> Marlin:
    """Matrices [2 * ffn, hidden], gate rows then up rows, each padded."""
    ffn = packed.shape[1] // 2
    more = -ffn % FFN_STEP

    def padded(part: torch.Tensor) -> torch.Tensor:
        halves = part.chunk(2)
        return torch.cat([torch.nn.functional.pad(half, (0, 0, 0, more)) for half in halves])

    return _marlin(packed, dtype, padded, padded, ffn + more)


def down(packed: Packed, dtype: torch.dtype) -> Marlin:
    """Matrices [hidden, ffn], the columns padded."""
    ffn = packed.shape[2]
    more = -ffn % FFN_STEP

    def padded(part: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(part, (0, more * part.shape[1] // ffn))

    return _marlin(packed, dtype, padded, padded, ffn + more)


def _marlin(
    packed: Packed, dtype: torch.dtype, pad_codes: Callable[[torch.Tensor], torch.Tensor],
    pad_scales: Callable[[torch.Tensor], torch.Tensor], ffn: int,
) -> Marlin:  # fmt: skip
    from vllm.model_executor.layers.quantization.utils.marlin_utils_test import get_weight_perm

    perm = torch.as_tensor(get_weight_perm(packed.bits), device=packed.device)
    values, scales = [], []
    for index in range(packed.shape[0]):
        one = packed[index]
        codes = pad_codes(_codes(one))  # [rows, columns]
        rows, columns = codes.shape
        values.append(_repacked(codes.T, perm, packed.bits))
        scales.append(_scales(one.name, pad_scales(_by_row(one, dtype)).T.contiguous(), columns, rows))
    return Marlin(torch.stack(values), torch.stack(scales), ffn)


def _codes(one: Packed) -> torch.Tensor:
    """uint8 [rows, columns]: a weight's bits, one a byte, of one expert."""
    raw = one.raw()[0]
    return raw if one.bits == 8 else torch.stack([raw & 0xF, raw >> 4], dim=-1).flatten(-2)


def _by_row(one: Packed, dtype: torch.dtype) -> torch.Tensor:
    """[rows, columns / group] in `dtype`, of one expert."""
    scales = one.scales[0]
    if one.name == "mxfp4":
        return scales.view(torch.float8_e8m0fnu).to(dtype)
    rows = one.shape[1]
    return scales.to(dtype).repeat_interleave(rows // scales.shape[0], 0)


def _repacked(codes: torch.Tensor, perm: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [columns / 16, 16 * rows * bits / 32] of codes [columns, rows]."""
    from vllm.model_executor.layers.quantization.utils.marlin_utils_test import marlin_permute_weights

    tiled = marlin_permute_weights(codes, *codes.shape, perm)
    if bits == 4:
        tiled = tiled[:, 0::2] | (tiled[:, 1::2] << 4)
    return tiled.contiguous().view(torch.int32)


def _scales(name: str, scales: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """Scales [columns / group, rows] as Marlin's kernel reads them."""
    from vllm.model_executor.layers.quantization.utils import marlin_utils, marlin_utils_fp4, marlin_utils_fp8

    made = marlin_utils.marlin_permute_scales(scales, columns, rows, columns // scales.shape[0])
    if name == "mxfp4":
        return marlin_utils_fp4.mxfp4_marlin_process_scales(made)
    return marlin_utils_fp8.fp8_fused_exponent_bias_into_scales(made) if name == "fp8_block" else made
