"""`fast`: a whole Mixture-of-Experts layer, no host synchronisation, few launches, tile heights chosen on the GPU.

logits -> routing (weights, order, row blocks) -> gate_up (gathers its rows of x) -> down (slot order) -> combine.
"""

from __future__ import annotations

import torch

from ..formats import Packed
from ..gating import Gating
from ..gradient import inference_only
from .forward import forward
from .operator import is_traced, traced_fast_moe
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

    x: float16 or bfloat16 [tokens, hidden], any number of tokens, in chunks above 8192 tokens of top-32; router_weight:
    [num_experts, hidden], also float32; gate_up: [num_experts, 2 * ffn, hidden], gate rows then up rows; down:
    [num_experts, hidden, ffn], all contiguous, in the dtype and on the device of x. gating: plain softmax by default;
    correction_bias: float32 [num_experts] for the gatings that have one. tiles: by default chosen from shape, tokens
    and device. Never waits for the GPU; a CUDA graph can hold it. A logit that is NaN ranks last.
    Inference only: where an input requires a gradient, a backward pass through y raises RuntimeError.
    Packed weights (kernels/formats) are taken in the place of both tensors; activations: ``a8`` or ``a16``, the bits of
    the rows that are multiplied with them, by default 8 where the GPU has units for it.
    Raises TypeError or ValueError, before any launch, for another dtype, device, shape, stride, top_k, gating or tiles.
    """
    # is_compiling is the whole process's: it may be another thread that compiles, while this call is an eager one.
    compiling = torch.compiler.is_compiling() and (tiles is None or torch.compiler.is_dynamo_compiling())
    traced = compiling or is_traced(x)
    rest = (top_k, gating, correction_bias)
    if isinstance(gate_up, Packed) or isinstance(down, Packed):
        if traced and isinstance(gate_up, Packed) and isinstance(down, Packed):
            return traced_fast_moe_packed(x, router_weight, gate_up, down, *rest, activations)

        return inference_only(forward_packed, x, router_weight, gate_up, down, *rest, tiles, activations)
    if traced:
        return traced_fast_moe(x, router_weight, gate_up, down, *rest, tiles)
    return inference_only(forward, x, router_weight, gate_up, down, *rest, tiles)
