"""`fast_a8`: `fast` over weights of four bits with 8-bit activations, as `humming_a8` is to `humming`: W4A8."""

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

from .fast import SCHEDULED, Fast
from .parts import own
from .parts.router import by_router

if TYPE_CHECKING:
    from tritonmoe_bench.kernels.fast.tile_types import FastTiles


class FastA8(Implementation):
    """Rows have one scale each, in and between the GEMMs."""

    name = "fast_a8"
    family = Fast.family
    source = Fast.source
    revision, revisions_up_to = by_router(SCHEDULED)
    needs_gpu = Fast.needs_gpu
    quants = ("mxfp4", "int4")

    def version(self) -> str:
        return Fast().version()

    def check(self, case: Case) -> Check:
        import torch

        from tritonmoe_bench.kernels.target import target_of

        if torch.cuda.is_available() and target_of(torch.device("cuda")).nvidia_major != 9:
            return unsupported("multiplies weights of four bits with 8-bit activations on Hopper GPUs alone")
        if case.hidden_dim % 16 or case.ffn_dim % 16:
            return unsupported("takes weights whose rows are a multiple of 16: others cannot be prepared")
        return Fast().check(case)

    def activations(self, case: Case) -> str:
        return "a8"

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.kernels.fast.layer import fast_moe

        packed = weights.packed_gate_up().prepared(), weights.packed_down().prepared()
        layer = (weights.router(), *packed, case.top_k, case.gate)
        bias = weights.correction_bias()
        return lambda x: fast_moe(x, *layer, correction_bias=bias, activations="a8")

    def config(self, case: Case) -> str:
        return str(_tiles(case))

    def planned_config(self, case: Case) -> str:
        return self.config(case)


def _tiles(case: Case) -> FastTiles:
    """What `fast_moe` chooses for a case on this machine."""
    from tritonmoe_bench.kernels.fast.choose_packed import w4_a8_tiles
    from tritonmoe_bench.kernels.formats import formats
    from tritonmoe_bench.kernels.target import target_of

    load = case.tokens * case.top_k / case.num_experts
    return w4_a8_tiles(formats()[case.quant], target_of(own.device()), load)
