"""`fast_invariant`: `fast` where a token's result may not depend, bit by bit, on the other tokens of its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import Case, Check, Forward, Implementation, Weights

from .fast import Fast
from .parts import own
from .parts.router import by_router

if TYPE_CHECKING:
    from tritonmoe_bench.kernels.fast.tile_types import FastTiles


class FastInvariant(Implementation):
    """One tile for every block of a layer, one split of the router's logits, no path of its own for a token or two."""

    name = "fast_invariant"
    family = Fast.family
    source = Fast.source
    # One router for any number of tokens, that of revision 12 of `fast`; of 13 and 15 the placing programs, of 15
    # top-k and the combine.
    revision, revisions_up_to = by_router({15: 11})
    needs_gpu = Fast.needs_gpu

    def version(self) -> str:
        return Fast().version()

    def check(self, case: Case) -> Check:
        return Fast().check(case)

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.kernels.fast.layer import fast_moe

        layer = (weights.router(), weights.gate_up(), weights.down(), case.top_k, case.gate)
        bias = weights.correction_bias()
        return lambda x: fast_moe(x, *layer, correction_bias=bias, invariant=True)

    def config(self, case: Case) -> str:
        return f"invariant {_tiles(case)}"

    def planned_config(self, case: Case) -> str:
        return self.config(case)


def _tiles(case: Case) -> FastTiles:
    """What `fast_moe` chooses for the layer of a case on this machine."""
    from tritonmoe_bench.kernels.fast.choose import invariant_tiles

    return invariant_tiles(own.device(), own.layer(case))
