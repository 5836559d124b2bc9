"""`paper_unfused`, `paper_fused`, `paper_fused_graph`: the three forms of the paper's forward, for the harness."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
    unsupported,
)

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.kernels.paper.tiles import Tiles


class PaperFused(Implementation):
    """Gate, up and SiLU in one kernel; the block schedule is built on the host, once for each direction."""

    name = "paper_fused"
    family = "paper"
    # What each revision changed:
    # 1: the first that was measured.
    # 2: in float16 the down projection multiplies by the routing weights; bfloat16 is as before.
    revision = 2
    source = "kernels/paper/pipeline.py"
    host_sync = "the block schedule is built on the host, twice a forward, as the paper does"
    needs_gpu = False
    fused: ClassVar[bool] = True
    schedule: ClassVar[str] = "host"

    def version(self) -> str:
        from tritonmoe_bench import __version__

        return __version__

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

        if case.gate.groups > 1 or case.gate.correction_bias:
            return unsupported(
                f"the paper's router has no expert groups and no correction bias, which gating={case.gating} needs"
            )
        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"the paper's router takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        try:
            _tiles()
        except ValueError as error:
            return unavailable(f"no tiles for this GPU: {error}")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from tritonmoe_bench.kernels import paper_moe

        layer = _layer(case, weights)
        fused, schedule, tiles = self.fused, self.schedule, _tiles()
        return lambda x: paper_moe(x, *layer, fused=fused, schedule=schedule, tiles=tiles)

    def stages(self, case: Case, weights: Weights, x: torch.Tensor) -> list[tuple[str, Callable[[], object]]]:
        from tritonmoe_bench.kernels import paper_stages

        layer = _layer(case, weights)
        return list(paper_stages(x, *layer, fused=self.fused, schedule=self.schedule, tiles=_tiles()))

    def config(self, case: Case) -> str:
        tiles = _tiles()
        inward = f"gate_up_silu={tiles.fused}" if self.fused else f"gate={tiles.gate_up} up={tiles.gate_up}"
        return f"{inward} down={tiles.down} schedule={self.schedule}"


class PaperUnfused(PaperFused):
    """Gate GEMM, up GEMM, SiLU x up: three kernels; the schedule on the host."""

    name = "paper_unfused"
    fused = False


class PaperFusedGraph(PaperFused):
    """As `paper_fused` with the schedule built on the GPU: the host never waits, and a CUDA graph holds the forward."""

    name = "paper_fused_graph"
    host_sync = ""
    schedule = "gpu"


def _layer(case: Case, weights: Weights) -> tuple:
    """What `paper_moe` takes after x."""
    return weights.router(), weights.gate_up(), weights.down(), case.top_k, case.gate


def _tiles() -> Tiles:
    import torch

    from tritonmoe_bench.kernels.paper.tiles import device_tiles

    on_gpu = torch.cuda.is_available()
    return device_tiles(torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
