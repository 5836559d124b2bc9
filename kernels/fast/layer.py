"""`fast`: a whole Mixture-of-Experts layer, no host synchronisation, few launches, tile heights chosen on the GPU.

logits -> routing (weights, order, row blocks) -> gate_up (gathers its rows of x) -> down (slot order) -> combine.
"""

from __future__ import annotations

import torch

from ..formats import Packed
from ..gating import Gating
from .forward import forward
from .operator import traced_fast_moe
from .packed import forward_packed
from .packed_operator import traced_fast_moe_packed
from .tile_types import FastTiles, FewTiles


def fast_moe(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    top_k: int,
    gating: Gating | None = None,
    *,
    correction_bias: torch.Tensor | None = None,
    tiles: FastTiles | FewTiles | None = None,
    activations: str | None = None,
) -> torch.Tensor:
    """y [tokens, hidden] = sum over the k experts of weight * down(silu(gate x) * up x), in the dtype of x.

    x: float16 or bfloat16 [tokens, hidden], up to 8192 tokens of top-32; router_weight: [num_experts, hidden];
    gate_up: [num_experts, 2 * ffn, hidden], gate rows then up rows; down: [num_experts, hidden, ffn], all contiguous,
    in the dtype and on the device of x. gating: plain softmax by default; correction_bias: float32 [num_experts] for
    the gatings that have one. tiles: by default chosen from shape, tokens and device. Never waits for the GPU; a CUDA
    graph can hold it. Inference only: no gradient is recorded. A logit that is NaN ranks last.
    Packed weights (kernels/formats) are taken in the place of both tensors; activations: ``a8`` or ``a16``, the bits of
    the rows that are multiplied with them, by default 8 where the GPU has units for it.
    Raises TypeError or ValueError, before any launch, for another dtype, device, shape, stride, top_k, gating or tiles.
    """
    if isinstance(gate_up, Packed) or isinstance(down, Packed):
        if isinstance(gate_up, Packed) and isinstance(down, Packed) and tiles is None and torch.compiler.is_compiling():
            arguments = (x, router_weight, gate_up, down, top_k, gating, correction_bias, activations)
            return traced_fast_moe_packed(*arguments)
        return forward_packed(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles, activations)
    # is_compiling is the whole process's: it may be another thread that compiles, while this call is an eager one.
    if torch.compiler.is_compiling() and (tiles is None or torch.compiler.is_dynamo_compiling()):
        return traced_fast_moe(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles)
    return forward(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles)
