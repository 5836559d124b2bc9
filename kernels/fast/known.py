"""Calls that have been checked before, with the tiles that they got: to check one again would cost as much of the
host's time as to launch two kernels.

Two calls are one if all is the same that the checks and the choice of tiles look at: of each tensor its shape,
strides, dtype and device, never its values.
"""

from __future__ import annotations

from typing import Any

import torch

from ..formats import Packed
from ..gating import Gating
from .experts import Experts
from .packed import SUPPORTED
from .route import Chosen, Router
from .tile_types import AnyTiles, FastTiles, FewTiles, JoinedTiles

MOST = 4096
"""Calls that are kept: some hundred bytes each."""
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_TILES = (type(None), FastTiles, FewTiles, JoinedTiles)
_tiles: dict[Any, AnyTiles] = {}


def describe(
    x: Any, route: Router | Chosen, experts: Experts, tiles: object, invariant: bool, out: object
) -> tuple[Any, ...] | None:
    """What tells a call from others. None for one that is to be checked every time: on a CPU, where checks ask for the
    state of the interpreter, with tensors of a class of their own, and with what is of a wrong type."""
    if type(x) not in _TENSORS or type(tiles) not in _TILES or (device := _current_device(x)) is None:
        return None
    plain: tuple[Any, ...] = ()
    parts: tuple[Any, ...]
    if isinstance(route, Router):
        if type(route.top_k) is not int or type(route.gating) is not Gating:
            return None
        plain, parts = (route.top_k, route.gating), (route.weight, route.correction_bias, route.bias)
    else:
        parts = (route.experts, route.weights, route.local.expert_map)
    if experts.activations not in (None, "a8", "a16"):
        return None
    epilogue = experts.epilogue
    tensors: list[Any] = [x, out, epilogue.gate_up_bias, epilogue.down_bias, *parts]
    for weights in (experts.gate_up, experts.down):
        if isinstance(weights, Packed) and type(weights) in SUPPORTED:
            tensors += (weights.values, weights.scales)
        else:
            tensors.append(weights)
    found: list[Any] = []
    for tensor in tensors:
        if tensor is None:
            found.append(None)
        elif type(tensor) in _TENSORS:
            found += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.storage_offset() % 4)
        else:
            return None
    kinds = type(route), type(experts.gate_up), type(experts.down)
    options = epilogue.activation, not epilogue.weights_on_input, experts.activations, not invariant, tiles
    return device, *kinds, *plain, *options, *found


def known_tiles(call: tuple[Any, ...] | None) -> AnyTiles | None:
    """The tiles of a call that was remembered."""
    return _tiles.get(call)


def remember(call: tuple[Any, ...] | None, tiles: AnyTiles) -> None:
    """Keeps the tiles of a call that its checks let pass."""
    if call is not None:
        if len(_tiles) >= MOST:
            _tiles.clear()
        _tiles[call] = tiles


def _current_device(x: torch.Tensor) -> int | None:
    """The GPU that kernels are launched on; None for a tensor on a CPU."""
    return torch.cuda.current_device() if x.is_cuda else None
