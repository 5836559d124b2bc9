"""The Triton kernels and the pipelines made of them. Imports nothing from the rest of the project.

The pipelines and what describes them are here; a single kernel is imported from the file that is called after it. Torch
and triton are loaded when a name first needs them, so that `Gating` and `Activation` serve where neither is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .activation import ACTIVATIONS, Activation
from .gating import GATINGS, Gating

if TYPE_CHECKING:
    from .fast.layer import fast_experts, fast_moe
    from .fast.tiled import tiled, untiled
    from .paper.pipeline import paper_moe, paper_stages
    from .paper.tiles import GemmTile, Tiles, default_tiles

__all__ = [
    "ACTIVATIONS", "GATINGS", "Activation", "Gating", "GemmTile", "Tiles", "default_tiles", "fast_experts", "fast_moe",
    "paper_moe", "paper_stages", "tiled", "untiled",
]  # fmt: skip

_MODULE_OF = {
    "GemmTile": "paper.tiles",
    "Tiles": "paper.tiles",
    "default_tiles": "paper.tiles",
    "fast_experts": "fast.layer",
    "fast_moe": "fast.layer",
    "paper_moe": "paper.pipeline",
    "paper_stages": "paper.pipeline",
    "tiled": "fast.tiled",
    "untiled": "fast.tiled",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
