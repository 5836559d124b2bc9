"""The entry points of `fast`: a whole Mixture-of-Experts layer, and its experts alone where routing is done outside.

Few launches, no host synchronisation, tile heights chosen on the GPU. fast_moe: logits -> routing (weights, order, row
blocks) -> gate_up (gathers its rows of x) -> down (slot order) -> combine. fast_experts begins with the row blocks.
Few tokens take other paths: few.py has no combine, joined.py one launch for both GEMMs, and neither has row blocks.
One launch for both is to be had with row blocks too (one_grid.py).
"""

from __future__ import annotations

import torch

from ..activation import Activation
from ..formats import Packed
from ..gating import Gating
from ..gradient import NO_GRADIENT, inference_only, needs_gradient
from .epilogue import Epilogue
from .experts import Experts
from .forward import forward
from .operator import is_traced, traced_fast_experts, traced_fast_moe
from .route import Chosen, Router
from .tile_types import AnyTiles


def fast_moe(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    top_k: int,
    gating: Gating | None = None,
    *,
    router_bias: torch.Tensor | None = None,
    correction_bias: torch.Tensor | None = None,
    activation: Activation | str = "silu",
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    weights_on_input: bool = False,
    activations: str | None = None,
    invariant: bool = False,
    out: torch.Tensor | None = None,
    tiles: AnyTiles | None = None,
) -> torch.Tensor:
    """y [..., hidden] = sum over the k experts of weight * down(silu(gate x) * up x), in the dtype of x.

    x: float16 or bfloat16 [..., hidden], any leading dimensions and strides, any number of tokens, in chunks above 8192
    tokens of top-32; router_weight: [num_experts, hidden], also float32. gating: plain softmax by default;
    correction_bias: float32 [num_experts] for the gatings that have one. router_bias: [num_experts], added to the
    logits (gpt-oss). A logit that is NaN ranks last. All else as `fast_experts` has it.
    """
    gating, activation = Gating() if gating is None else gating, Activation.of(activation)
    if _is_traced(x, tiles):
        options = (activation, gate_up_bias, down_bias, weights_on_input, activations, invariant)
        y = traced_fast_moe(x, router_weight, gate_up, down, top_k, gating, router_bias, correction_bias, *options)
        return y if out is None else out.copy_(y)
    route = Router(router_weight, top_k, gating, correction_bias, router_bias)
    experts = Experts(gate_up, down, Epilogue(activation, gate_up_bias, down_bias, weights_on_input), activations)
    return _run(x, route, experts, tiles, invariant, out, (router_weight, router_bias, correction_bias))


def fast_experts(
    x: torch.Tensor,
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    activation: Activation | str = "silu",
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    weights_on_input: bool = False,
    expert_map: torch.Tensor | None = None,
    activations: str | None = None,
    invariant: bool = False,
    out: torch.Tensor | None = None,
    tiles: AnyTiles | None = None,
) -> torch.Tensor:
    """The experts of a layer whose routing is done: y [..., hidden] = sum over the slots of a token of
    weight * (down(act(gate x + bias, up x + bias)) + bias), in the dtype of x.

    x: float16 or bfloat16 [..., hidden], any leading dimensions and strides. gate_up: [num_experts, 2 * ffn, hidden],
    gate rows then up rows; down: [num_experts, hidden, ffn], both contiguous, in the dtype of x; or both as `tiled`
    gives them; or both packed (kernels/formats). topk_ids: int32 or int64, topk_weights:
    float32 or 16 bits, both [..., top_k] or [tokens, top_k], top_k up to 32. A slot whose id is below 0 or not below
    num_experts adds exactly 0: an expert of another GPU, or padding. expert_map: int32 [global experts], the expert
    here of each global id, or -1.
    activation: an `Activation` or its name (``silu``, ``gelu_tanh``, ``gpt_oss``). gate_up_bias: [num_experts,
    2 * ffn], gate then up; down_bias: [num_experts, hidden]; float32 or 16 bits, added in float32. weights_on_input:
    the weight multiplies what gate and up take instead of what down gives (Llama-4), in float32.
    activations: ``a8`` or ``a16``, the bits of the rows that packed weights are multiplied with, by default 8 for
    fp8_block where the GPU has units for it, else 16; 8 for prepared weights in mxfp4 (scales from 2^-15 to 2^1) and
    int4 on a Hopper GPU. invariant: a token's result does not depend, bit by bit, on the other tokens of the batch; one
    tile serves all batches, which costs time. out: what is written and returned, contiguous, as x; it may be x itself.
    tiles: by default chosen from shape, tokens and device.

    Never waits for the GPU; a CUDA graph can hold it. Inference only: where an input requires a gradient, a backward
    pass through y raises RuntimeError. Raises TypeError or ValueError, before any launch, for another dtype, device,
    shape, stride or tiles; RuntimeError for `out` where an input requires a gradient.
    """
    activation = Activation.of(activation)
    if _is_traced(x, tiles):
        options = (activation, gate_up_bias, down_bias, weights_on_input, activations, invariant)
        y = traced_fast_experts(x, gate_up, down, topk_ids, topk_weights, expert_map, *options)
        return y if out is None else out.copy_(y)
    experts = Experts(gate_up, down, Epilogue(activation, gate_up_bias, down_bias, weights_on_input), activations)
    route = Chosen.outside(topk_ids, topk_weights, experts.num_experts, expert_map)
    return _run(x, route, experts, tiles, invariant, out, (topk_weights,))


def _is_traced(x: torch.Tensor, tiles: object) -> bool:
    """Whether the call goes into a graph as an operator. Raises ValueError for tiles, which an operator cannot take."""
    # is_compiling is the whole process's: it may be another thread that compiles, while this call is an eager one.
    compiling = torch.compiler.is_compiling() and (tiles is None or torch.compiler.is_dynamo_compiling())
    traced = compiling or is_traced(x)
    if traced and tiles is not None:
        raise ValueError("tiles cannot be given where a graph is traced, as by torch.compile: there they are chosen")
    return traced


def _run(x, route, experts, tiles, invariant, out, routing) -> torch.Tensor:
    """`forward`, whose output requires a gradient where one of its tensors does; routing: the tensors of `route`."""
    epilogue = experts.epilogue
    tensors = (x, experts.gate_up, experts.down, epilogue.gate_up_bias, epilogue.down_bias, *routing)
    if out is not None and needs_gradient(*tensors):
        raise RuntimeError(f"out cannot be given where an input requires a gradient: {NO_GRADIENT}")
    return inference_only(lambda *_: forward(x, route, experts, tiles, invariant, out), *tensors)
