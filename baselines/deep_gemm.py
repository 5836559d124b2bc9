"""`deep_gemm`: DeepGEMM's grouped GEMMs over contiguous groups of rows, e4m3 or bf16, in a layer of ours.

DeepGEMM (SGLang's build of it on PyPI) has the GEMMs alone. Around them: router GEMM and top-k as in `fast`, and the
kernels of parts/grouped_rows.py, which quantise x by token and 128 columns on its way to the experts, and the
intermediate after SiLU x up. Of DeepGEMM's layouts this is the one with prefix sums: groups end where a tensor on the
GPU says, so the host never waits, and DeepGEMM chooses its tile by the rows there is room for. In its masked layout it
would take every expert to be active, and for a few tokens choose tiles so wide that part of the GPU has none. Kernels
are compiled by nvcc in `build`. A folder .peers/deep_gemm is used if there is one (baselines/builds/offline), else an
installed sgl-deep-gemm.
"""

from __future__ import annotations

import functools
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

from .install import trees
from .install.installed import find_nvcc, first_line, installed_version
from .parts.in_build import run_once
from .parts.router import by_router
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

VERSION = "0.1.5.post1"
INSTALL = f"pip install sgl-deep-gemm=={VERSION}"
CAPABILITY = (9, 0)
HEIGHTS = (64, 128)
"""Rows of a tile, which are also what a group's first row is a multiple of."""


class DeepGemm(Implementation):
    name = "deep_gemm"
    revision, revisions_up_to = by_router({15: 6})
    family = "library"
    source = f"PyPI sgl-deep-gemm {VERSION}: m_grouped_fp8_fp4_gemm_nt_contiguous, m_grouped_bf16_gemm_nt_contiguous"
    quants = ("none", "fp8_block")

    def version(self) -> str:
        return trees.record(trees.folder("deep_gemm")).get("sgl_deep_gemm", "") or installed_version("sgl-deep-gemm")

    def search_path(self) -> list[Path]:
        return trees.search_path("deep_gemm")

    def config(self, case: Case) -> str:
        return f"contiguous layout with prefix sums, tiles of {height(case)} rows, room for {_room(case)}"

    def activations(self, case: Case) -> str:
        return "a8" if case.quant == "fp8_block" else "a16"

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"the router takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        if case.quant == "none" and case.dtype != "bf16":
            return unsupported(f"DeepGEMM's 16-bit GEMMs take bf16 only, got {case.dtype}")
        return divisible(case, WHOLE_16_BYTES, "TMA needs rows of whole 16 bytes")

    def build(self, case: Case, weights: Weights) -> Forward:
        return run_once(grouped_forward(case, weights), case, weights)


def height(case: Case) -> int:
    """Rows of a tile: the lowest that holds an expert's mean load, else the highest."""
    load = case.slots / case.num_experts
    return next((rows for rows in HEIGHTS if rows >= load), HEIGHTS[-1])


def _room(case: Case) -> int:
    from .parts.grouped_rows import most_rows

    return most_rows(case.slots, case.num_experts, height(case))


def grouped_forward(case: Case, weights: Weights) -> Forward:
    import deep_gemm
    import torch

    from tritonmoe_bench.kernels.fast.logits import launch_logits
    from tritonmoe_bench.kernels.fast.routing import launch_top_k

    from .parts.grouped_rows import Places, Rows, combine, place, scatter, silu_rows

    router, bias, quantize = weights.router(), weights.correction_bias(), case.quant == "fp8_block"
    operands: tuple
    if quantize:
        operands = tuple((packed.values, packed.scales) for packed in (weights.packed_gate_up(), weights.packed_down()))
    else:
        operands = weights.gate_up("nk"), weights.down("nk")
    gate_up, down = operands

    def gemm(rows: Rows, stacked, width: int, places: Places) -> torch.Tensor:
        out = torch.empty((places.total, width), dtype=torch.bfloat16, device=places.rows.device)
        if rows.scales is None:
            deep_gemm.m_grouped_bf16_gemm_nt_contiguous(rows.values, stacked, out, places.ends, use_psum_layout=True)
        else:
            left = rows.values, rows.scales
            deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(left, stacked, out, places.ends, use_psum_layout=True)
        return out

    def forward(x: torch.Tensor) -> torch.Tensor:
        deep_gemm.set_mk_alignment_for_contiguous_layout(height(case))  # one number for the whole process
        experts, scores = launch_top_k(launch_logits(x, router), case.top_k, case.gate, bias)
        places = place(experts, case.num_experts, height(case))
        both = gemm(scatter(x, places, quantize), gate_up, 2 * case.ffn_dim, places)
        out = gemm(silu_rows(both, places, quantize), down, case.hidden_dim, places)
        return combine(out, places, scores, x.dtype)

    return forward


@functools.cache
def _problem() -> str:
    """Why DeepGEMM cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    if not find_nvcc():
        return "DeepGEMM compiles its kernels at first use and finds no nvcc: set CUDA_HOME to a CUDA of 12.3 or later"
    try:
        import deep_gemm

        assert deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous
    except Exception as error:  # a library built for another torch or CUDA fails in ways of its own
        return f"{first_line(error)}: {INSTALL}"
    if not torch.cuda.is_available():
        return "DeepGEMM's kernels need an NVIDIA GPU"
    if torch.cuda.get_device_capability() != CAPABILITY:
        have = "{}.{}".format(*torch.cuda.get_device_capability())
        return (
            f"the adapter writes scales as DeepGEMM wants them on Hopper (compute capability 9.0), this GPU has {have}"
        )
    return ""
