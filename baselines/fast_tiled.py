"""`fast_tiled`: `fast` over 16-bit weights that were put in tiles of 64 by 64, once, untimed (`kernels.tiled`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import (
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unsupported,
)

from .fast import Fast
from .parts import own
from .parts.conversions import Conversions
from .parts.router import by_router

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.kernels.fast.tile_types import AnyTiles


class FastTiled(Implementation):
    """The numbers of a checkpoint in another order in memory, in which the expert GEMMs read them faster."""

    name = "fast_tiled"
    family = Fast.family
    source = Fast.source
    revision, revisions_up_to = by_router({15: 3})
    needs_gpu = Fast.needs_gpu

    def __init__(self) -> None:
        self._tiled = Conversions(_tiled)

    def version(self) -> str:
        return Fast().version()

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.fast.tiled import TILE

        if case.hidden_dim % TILE or case.ffn_dim % TILE:
            return unsupported(f"takes a hidden_dim and ffn_dim of whole tiles of {TILE}")
        return Fast().check(case)

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.kernels.fast.layer import fast_moe

        layer = (weights.router(), *self._tiled(weights), case.top_k, case.gate)
        bias = weights.correction_bias()
        return lambda x: fast_moe(x, *layer, correction_bias=bias)

    def config(self, case: Case) -> str:
        return str(_tiles(case))

    def planned_config(self, case: Case) -> str:
        return self.config(case)


def _tiles(case: Case) -> AnyTiles:
    """What `fast_moe` chooses for a case on this machine."""
    from tritonmoe_bench.kernels.fast.choose import choose_tiles

    return choose_tiles(own.device(), *own.layer(case), case.tokens, in_tiles=True)


def _tiled(weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    from tritonmoe_bench.kernels.fast.tiled import tiled

    return tiled(weights.gate_up()), tiled(weights.down())
