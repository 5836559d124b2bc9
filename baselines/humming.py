"""`humming` and `humming_a8`: Humming's GEMMs, compiled for each shape when they are first used, in vLLM's layer.

vLLM takes Humming before Marlin on Hopper. Router, top-k, alignment, activation and weighted sum are vLLM's, in the
order of its `HummingIndexedExperts`; the GEMMs gather rows by the aligned indices. Tiles are those of Humming's own
heuristic for the GPU and the number of rows. `humming` keeps 16-bit activations; `humming_a8` quantises rows to e4m3,
one scale a row, in a kernel of Humming's before each GEMM. Folders .peers/humming and .peers/vllm are used if they are
there (baselines/builds/offline), else what is installed.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Weights

from .install import trees
from .install.installed import first_line, installed_version
from .parts.conversions import Conversions
from .parts.in_build import run_once
from .parts.serving import OF_ROUTER
from .vllm import Vllm, router_of

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.kernels.formats import Packed

    from .parts.humming_gemm import Gemm

VERSION = "0.1.19"
INSTALL = f"pip install humming-kernels=={VERSION}"


class Humming(Vllm):
    name = "humming"
    label = "Humming"
    source = f"PyPI humming-kernels {VERSION}: humming_forward, in the order of vLLM's HummingIndexedExperts"
    quants: ClassVar[tuple[str, ...]] = ("fp8_block", "mxfp4", "int4", "int4_g32")
    facts = OF_ROUTER
    input_dtype: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._gemms = Conversions(functools.partial(_gemms, input_dtype=self.input_dtype))

    def version(self) -> str:
        own = trees.record(trees.folder("humming")).get("humming_kernels", "") or installed_version("humming-kernels")
        vllm = super().version()
        return f"{own} (vLLM {vllm})" if own and vllm else ""

    def search_path(self) -> list[Path]:
        return [*trees.search_path("humming"), *super().search_path()]

    def problem(self) -> str:
        return super().problem() or _problem()

    def check_shape(self, case: Case) -> Check:
        return OK

    def activations(self, case: Case) -> str:
        return "a8" if self.input_dtype else "a16"

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
        from vllm.model_executor.layers.fused_moe.moe_fused_mul_sum import moe_fused_mul_sum

        route = router_of(case, weights)
        gate_up, down = self._gemms(weights)
        first, second = gate_up.tile(case.slots), down.tile(case.slots)

        def align(topk_ids: torch.Tensor, height: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return moe_align_block_size(topk_ids, height, case.num_experts, None, ignore_invalid_experts=True)

        def forward(x: torch.Tensor) -> torch.Tensor:
            topk_weights, topk_ids = route(x)
            rows = align(topk_ids, first.height)
            both = gate_up(x, rows, first, case.top_k)
            hidden = torch.empty((case.slots, case.ffn_dim), dtype=x.dtype, device=x.device)
            torch.ops._C.silu_and_mul(hidden, both)
            rows = rows if second.height == first.height else align(topk_ids, second.height)
            out = down(hidden, rows, second, 1).view(*topk_ids.shape, case.hidden_dim)
            return moe_fused_mul_sum(out, topk_weights, torch.empty_like(x), topk_ids)

        self.configured(case, f"gate_up:{first.words} down:{second.words}")
        return run_once(forward, case, weights)


class HummingA8(Humming):
    """The same with 8-bit activations, for weights of 4 bits: W4A8."""

    name = "humming_a8"
    quants = ("mxfp4", "int4", "int4_g32")
    input_dtype = "float8e4m3"


def _gemms(weights: Weights, input_dtype: str | None) -> tuple[Gemm, Gemm]:
    """Gate and up, and down."""
    from .parts.humming_gemm import Gemm

    def gemm(packed: Packed) -> Gemm:
        return Gemm(packed, weights.dtype, input_dtype)

    return gemm(weights.packed_gate_up()), gemm(weights.packed_down())


@functools.cache
def _problem() -> str:
    """Why Humming cannot run in this process, with the command that would mend it; empty if it can."""
    os.environ.setdefault("HUMMING_DISABLE_PARALLEL_BUILD", "1")  # else a process beside this one builds in advance
    try:
        import humming.forward
        import humming.transform  # noqa: F401
    except Exception as error:  # libraries built for another torch or CUDA fail in ways of their own
        return f"{first_line(error)}: {INSTALL}"
    return ""
