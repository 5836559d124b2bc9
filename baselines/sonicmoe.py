"""SonicMoE (arXiv 2512.14080): its whole layer, `moe_TC_softmax_topk_layer`, on QuACK's grouped GEMMs in CuTe DSL.

It gathers rows of x inside the gate and up GEMM, with SiLU x up in its epilogue, and sums by token after down. Gate and
up rows lie in turns. QuACK compiles its tiles when a process first meets a kind of GEMM, in processes of its own (a
minute or so; QUACK_CACHE_DIR keeps what was compiled), and times them for each shape. The package asks for torch 2.9.1
at most; with 2.11 it runs if it is put on the path without pip (baselines/builds/offline/unpack.py).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import (
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
    unsupported,
)
from tritonmoe_bench.kernels.gating import Gating

from .install import trees
from .install.installed import first_line, installed_version
from .parts.in_build import run_once
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

INSTALL = "python baselines/builds/offline/unpack.py sonicmoe"
CAPABILITIES = (9, 10)
MOST_EXPERTS = 4096


class Sonicmoe(Implementation):
    name = "sonicmoe"
    family = "research"
    source = "PyPI sonic-moe: sonicmoe.functional.moe_TC_softmax_topk_layer, on quack-kernels"

    def version(self) -> str:
        record = trees.record(trees.folder("sonicmoe"))
        parts = [
            record.get(name.replace("-", "_")) or installed_version(name) for name in ("sonic-moe", "quack-kernels")
        ]
        return "{} (quack-kernels {})".format(*parts) if all(parts) else ""

    def search_path(self) -> list[Path]:
        made = trees.search_path("sonicmoe")
        return [*made, *(folder / "nvidia_cutlass_dsl" / "python_packages" for folder in made)]

    def config(self, case: Case) -> str:
        return "tiles by QuACK's autotuner"

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.gate not in (Gating(), Gating(renormalize=True)):
            return unsupported(f"gating={case.gating}: SonicMoE routes by softmax, over all experts or the chosen ones")
        if case.num_experts % 8 or case.num_experts > MOST_EXPERTS:
            return unsupported(f"num_experts={case.num_experts}: its top-k takes multiples of 8 up to {MOST_EXPERTS}")
        return divisible(case, WHOLE_16_BYTES, "TMA needs rows of whole 16 bytes")

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from sonicmoe.functional import moe_TC_softmax_topk_layer

        from .parts.interleaved import interleaved_gate_up

        # Where QuACK's compiling processes look for it.
        os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, self.search_path()), os.environ.get("PYTHONPATH", "")])
        router = weights.router()
        gate_up = interleaved_gate_up(weights).permute(1, 2, 0)
        down = weights.down("nk").permute(1, 2, 0)
        over_chosen = case.gate.renormalize  # softmax over the chosen logits is renormalised softmax over all

        def forward(x: torch.Tensor) -> torch.Tensor:
            stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
            y, _, _ = moe_TC_softmax_topk_layer(
                x, router, gate_up, None, down, None, case.top_k, stream, "swiglu", is_inference_mode_enabled=True,
                is_softmax_over_topk=over_chosen, norm_topk_probs=False,
            )  # fmt: skip
            return y

        return run_once(forward, case, weights)


@functools.cache
def _problem() -> str:
    """Why SonicMoE cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    try:
        from sonicmoe.functional import moe_TC_softmax_topk_layer  # noqa: F401
    except Exception as error:  # a compiler in Python, built for one torch and one CUDA, fails in ways of its own
        return f"{first_line(error)}: {INSTALL}"
    if not torch.cuda.is_available():
        return "SonicMoE's kernels need an NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability[0] not in CAPABILITIES:
        return "SonicMoE's kernels are Hopper's and Blackwell's, this GPU has compute capability {}.{}".format(
            *capability
        )
    return ""
