"""The checks of what `fast` is called with, before any launch: each error names what was wrong and what is allowed."""

from __future__ import annotations

import torch

from ..activation import Activation
from ..checks import (
    DTYPES,
    MAX_TOP_K,
    check_contiguous,
    check_expert_size,
    check_num_experts,
    check_router_weight,
    check_rows,
    check_tensor,
    check_top_k,
)
from ..gating import Gating
from .experts import Experts
from .packed import check_packed
from .route import Chosen, Router
from .tile_check import check_tiles
from .tiled import TILE

FLOATS = (*DTYPES, torch.float32)
"""Types of biases and routing weights."""
IDS = (torch.int32, torch.int64)


def check_arguments(
    x: object,
    route: Router | Chosen,
    experts: Experts,
    tiles: object,
    invariant: bool,
    out: object,
) -> None:
    """Raises TypeError or ValueError for a call that cannot be run."""
    x = check_rows("x", x, DTYPES)
    hidden = x.shape[-1]
    if isinstance(route, Router):
        num_experts = check_router_weight(route.weight, x).shape[0]
    else:
        num_experts = check_num_experts(experts.num_experts)
    if experts.packed:
        check_packed(x, experts, num_experts)
    else:
        _check_weights(x, experts, num_experts)
    if isinstance(route, Router):
        check_top_k(route.top_k, num_experts)
        check_contiguous("router_weight", route.weight)
        check_gating(route.gating, route.correction_bias, num_experts, route.top_k, x)
        _check_bias("router_bias", route.bias, (num_experts,), x)
    else:
        _check_chosen(route, x)
    check_tiles(tiles, x, route, experts, invariant)
    ffn = experts.ffn
    epilogue = experts.epilogue
    assert isinstance(epilogue.activation, Activation)
    _check_bias("gate_up_bias", epilogue.gate_up_bias, (num_experts, 2 * ffn), x)
    _check_bias("down_bias", epilogue.down_bias, (num_experts, hidden), x)
    if out is not None:
        out = check_rows("out", out, (x.dtype,), x)
        if out.shape != x.shape:
            raise ValueError(f"out must have the shape of x, {list(x.shape)}, got {list(out.shape)}")
        check_contiguous("out", out)


def _check_weights(x: torch.Tensor, experts: Experts, num_experts: int) -> None:
    hidden = x.shape[-1]
    in_tiles = getattr(experts.down, "ndim", 3) == 5
    if in_tiles and hidden % TILE:
        raise ValueError(f"tiled weights are of whole tiles of {TILE}, and x has hidden={hidden}: pad both with zeros")
    across, tile = (hidden // TILE, (TILE, TILE)) if in_tiles else (hidden, ())
    down = check_tensor("down", experts.down, (num_experts, across, "ffn", *tile), (x.dtype,), x)
    gate_up = check_tensor("gate_up", experts.gate_up, (num_experts, 2 * down.shape[2], across, *tile), (x.dtype,), x)
    for name, weights in (("gate_up", gate_up), ("down", down)):
        check_expert_size(name, weights)
        check_contiguous(name, weights)
    if experts.activations not in (None, "a16"):
        raise ValueError(f"activations={experts.activations!r}: weights of 16 bits are multiplied with 'a16' alone")


def _check_bias(name: str, bias: object, shape: tuple[int, ...], x: torch.Tensor) -> None:
    if bias is not None:
        check_contiguous(name, check_tensor(name, bias, shape, FLOATS, x))


def _check_chosen(chosen: Chosen, x: torch.Tensor) -> None:
    tokens = x.numel() // x.shape[-1]
    ids = check_tensor("topk_ids", chosen.experts, (tokens, "top_k"), IDS, x)
    check_tensor("topk_weights", chosen.weights, (tokens, ids.shape[1]), FLOATS, x)
    if ids.shape[1] > MAX_TOP_K:
        raise ValueError(f"topk_ids has {ids.shape[1]} experts a token: allowed are 1 to {MAX_TOP_K}")
    expert_map = chosen.local.expert_map
    if expert_map is not None:
        check_contiguous("expert_map", check_tensor("expert_map", expert_map, ("global experts",), (torch.int32,), x))


def check_gating(gating: object, correction_bias: object, num_experts: int, top_k: int, x: torch.Tensor) -> None:
    """Raises TypeError or ValueError for a gating that does not go with its bias or with the experts."""
    if not isinstance(gating, Gating):
        raise TypeError(f"gating must be a Gating, got {type(gating).__name__}")
    if gating.correction_bias != (correction_bias is not None):
        raise ValueError("correction_bias must be given exactly when the gating has one")
    if correction_bias is not None:
        check_tensor("correction_bias", correction_bias, (num_experts,), (torch.float32,), x)
    if gating.groups > 1:
        members = num_experts // gating.groups
        if num_experts % gating.groups or members < 2:
            raise ValueError(
                f"{num_experts} experts in {gating.groups} groups: groups must have the same size, two experts or more"
            )
        if top_k > gating.top_groups * members:
            raise ValueError(f"top_k={top_k} does not fit into {gating.top_groups} groups of {members} experts")
