"""`fastvariant_*`: `fast` with one of its choices forced, for the studies decode, fusion and heights.

All are made of the functions that `fast` itself is made of, with its tiles, so that two of them differ in one thing.
A study runs them only where it names them (experiments/sweeping/plan.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

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
    import torch

    from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FastTile, FastTiles, FewTiles, JoinedTiles

MAX_DECODE_TOKENS = 64
"""Beyond, every expert is read again for each of many tokens, and nobody would take the output-centric path."""
BYTES_PER_ELEMENT = 2


class _FastVariant(Implementation):
    """`fast` with given tiles instead of its own choice of path and tiles."""

    family = "fastvariant"
    source = Fast.source
    revision, revisions_up_to = by_router(SCHEDULED)
    needs_gpu = Fast.needs_gpu

    def version(self) -> str:
        return Fast().version()

    def check(self, case: Case) -> Check:
        return Fast().check(case)

    def tiles(self, case: Case) -> AnyTiles:
        """Of the path with a schedule and a grid for each GEMM: those of `fast`, or that it would take if it had no
        other path."""
        from tritonmoe_bench.kernels.fast.choose import ONE_GRID_LIGHTEST, row_block_tiles
        from tritonmoe_bench.kernels.fast.tile_types import FastTiles
        from tritonmoe_bench.kernels.target import target_of

        chosen = _chosen(case, case.tokens)
        if isinstance(chosen, FastTiles) and chosen != ONE_GRID_LIGHTEST:  # which lose with a grid for each
            return replace(chosen, one_grid=False)
        return row_block_tiles(target_of(own.device()), *own.layer(case), case.tokens)

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.kernels.fast.layer import fast_moe

        layer = (weights.router(), weights.gate_up(), weights.down(), case.top_k, case.gate)
        bias, tiles = weights.correction_bias(), self.tiles(case)
        return lambda x: fast_moe(x, *layer, correction_bias=bias, tiles=tiles)

    def config(self, case: Case) -> str:
        return str(self.tiles(case))

    def planned_config(self, case: Case) -> str:
        return self.config(case)


class OutputCentric(_FastVariant):
    """The path for a token or two, for any number of tokens that a decode step has."""

    name = "fastvariant_output_centric"
    revision, revisions_up_to = by_router({15: 12})

    def check(self, case: Case) -> Check:
        if case.tokens > MAX_DECODE_TOKENS:
            return unsupported(f"the output-centric path is compared up to {MAX_DECODE_TOKENS} tokens")
        return super().check(case)

    def tiles(self, case: Case) -> FewTiles:
        """Those of `fast` for so many tokens, or for one where it takes the other path."""
        from tritonmoe_bench.kernels.fast.choose import few_tiles
        from tritonmoe_bench.kernels.fast.tile_types import FewTiles

        for tokens in (case.tokens, 1):
            chosen = _chosen(case, tokens)
            if isinstance(chosen, FewTiles):
                return chosen
        return few_tiles(case.top_k, case.hidden_dim, case.ffn_dim, 1)


class Joined(_FastVariant):
    """The path with both GEMMs in one grid, as far as it goes."""

    name = "fastvariant_joined"
    revision, revisions_up_to = by_router({15: 5})  # 1: with each sum of down in one part

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.fast.tile_types import JOINED_TOKENS
        from tritonmoe_bench.kernels.target import target_of

        if target_of(own.device()).is_amd:
            return unsupported("the joined path needs a GPU of NVIDIA's")
        if case.tokens > JOINED_TOKENS:
            return unsupported(f"the joined path takes up to {JOINED_TOKENS} tokens")
        return super().check(case)

    def tiles(self, case: Case) -> JoinedTiles:
        """Those of `fast`, or those that it has for other experts if it takes another path."""
        from tritonmoe_bench.kernels.fast.choose import JOINED
        from tritonmoe_bench.kernels.fast.tile_types import JoinedTiles

        chosen = _chosen(case, case.tokens)
        return chosen if isinstance(chosen, JoinedTiles) else JOINED


class ExpertCentric(_FastVariant):
    """The path with a schedule, even for one token."""

    name = "fastvariant_expert_centric"


class Gather(_FastVariant):
    """The path with a schedule: gate_up gathers its rows of x, down scatters its rows to their slots."""

    name = "fastvariant_gather"


class Permute(_FastVariant):
    """As `fastvariant_gather`, but gate_up works on rows in expert order, which a pass of its own gathers before.

    The pass is the paper's, and is launched without programmatic dependent launch.
    """

    name = "fastvariant_permute"

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        from tritonmoe_bench.kernels.fast.blocks import launch_routing
        from tritonmoe_bench.kernels.fast.forward import launch_combine
        from tritonmoe_bench.kernels.fast.gemm import launch_down, launch_gate_up
        from tritonmoe_bench.kernels.fast.logits import launch_logits
        from tritonmoe_bench.kernels.fast.tile_types import FastTiles
        from tritonmoe_bench.kernels.paper.permute import launch_permute

        router, gate_up, down, bias = weights.router(), weights.gate_up(), weights.down(), weights.correction_bias()
        tiles, top_k, gate = self.tiles(case), case.top_k, case.gate
        assert isinstance(tiles, FastTiles)
        in_order = torch.arange(case.slots, dtype=torch.int32, device=router.device)

        def forward(x: torch.Tensor) -> torch.Tensor:
            blocks = launch_routing(launch_logits(x, router), top_k, gate, bias, tiles.block_m)
            rows, _ = launch_permute(x, blocks.order, top_k)
            inner = launch_gate_up(rows, gate_up, replace(blocks, order=in_order), 1, tiles)
            return launch_combine(launch_down(inner, down, blocks, tiles), blocks.weights)

        return forward

    def config(self, case: Case) -> str:
        return f"permuted {self.tiles(case)}"


class Dynamic(_FastVariant):
    """The path with a schedule: the height of each tile chosen on the GPU from the rows of its block."""

    name = "fastvariant_dynamic"


class _Fixed(_FastVariant):
    """As `fastvariant_dynamic` with one height for all tiles, and else its tiles.

    Where a tile so high needs more shared memory than a program may take, fewer loads are in flight.
    """

    height: ClassVar[int]

    def tiles(self, case: Case) -> FastTiles:
        from tritonmoe_bench.kernels.fast.tile_types import FastTiles

        dynamic = super().tiles(case)
        assert isinstance(dynamic, FastTiles)
        gate_up, down = _fitting(dynamic.gate_up, self.height, 2), _fitting(dynamic.down, self.height, 1)
        return FastTiles(self.height, gate_up, down, dynamic=False)


class Fixed16(_Fixed):
    name = "fastvariant_fixed16"
    height = 16


class Fixed32(_Fixed):
    name = "fastvariant_fixed32"
    height = 32


class Fixed64(_Fixed):
    name = "fastvariant_fixed64"
    height = 64


class Fixed128(_Fixed):
    name = "fastvariant_fixed128"
    height = 128


def _chosen(case: Case, tokens: int) -> AnyTiles:
    """What `fast` takes for the layer of the case and so many tokens."""
    from tritonmoe_bench.kernels.fast.choose import choose_tiles

    return choose_tiles(own.device(), *own.layer(case), tokens)


def _fitting(tile: FastTile, height: int, matrices: int) -> FastTile:
    """The tile, with as many loads in flight as shared memory holds of a step: rows, and those of so many matrices."""
    import torch

    device = own.device()
    if device.type == "cpu":
        return tile
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block

    def most(step: int) -> int:
        # A KiB is left for the barriers of bulk copies.
        return max((shared - 1024) // ((height + matrices * tile.block_n) * step * BYTES_PER_ELEMENT), 1)

    return replace(
        tile, stages=min(tile.stages, most(tile.block_k)), small_stages=min(tile.small_stages, most(tile.small_k))
    )
