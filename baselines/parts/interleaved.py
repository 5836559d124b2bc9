"""Gate and up with their rows in turn, gate 0, up 0, gate 1, ..., as kernels that fuse an activation want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .conversions import Conversions

if TYPE_CHECKING:
    from tritonmoe_bench.experiments.implementation.contract import Weights


def _interleaved(weights: Weights) -> torch.Tensor:
    case = weights.case
    shape = (case.num_experts, case.ffn_dim, 2, case.hidden_dim)
    pairs = torch.empty(shape, dtype=weights.dtype, device=weights.device)
    for index in range(case.num_experts):
        gate, up, _ = weights.expert(index)
        pairs[index, :, 0].copy_(gate)
        pairs[index, :, 1].copy_(up)
    return pairs.flatten(1, 2)


interleaved_gate_up = Conversions(_interleaved)
"""[num_experts, 2 * ffn, hidden] of a weight set in 16 bits, made expert by expert."""


def interleaved_bias(weights: Weights) -> torch.Tensor | None:
    """[num_experts, 2 * ffn], in the same order; None for experts without biases."""
    bias = weights.gate_up_bias()
    return None if bias is None else torch.stack(bias.chunk(2, dim=1), dim=2).flatten(1)
