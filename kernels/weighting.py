"""Where the routing weights are applied to the outputs of the experts."""

from __future__ import annotations

import torch


def weighted_by_down(dtype: torch.dtype) -> bool:
    """Whether the down GEMM multiplies by the routing weights, and not the pass that sums, where they cost the least.

    dtype: of the expert outputs. In float16 an output may be out of range (65504) before it is weighted; bfloat16
    reaches as far as float32. What the inner activations, silu(gate) * up, lose beyond 65504 is lost either way.
    """
    return dtype == torch.float16
