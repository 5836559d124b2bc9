"""`deep_gemm`: DeepGEMM's grouped GEMMs of the masked layout, e4m3 or bf16, in a layer of ours.

DeepGEMM (SGLang's build of it on PyPI) has the GEMMs alone. Around them: router GEMM and top-k as in `fast`, and the
kernels of parts/masked_rows.py, which quantise x by token and 128 columns on its way to the experts, and the
intermediate after SiLU x up. The masked layout is DeepGEMM's own for decoding: rows are placed on the GPU, the host
never waits, and `expected_m`, the mean load, lets it choose a tile. Kernels are compiled by nvcc in `build`.
A folder .peers/deep_gemm is used if there is one (baselines/builds/offline), else an installed sgl-deep-gemm.
"""

from __future__ import annotations

import functools
import os
import shutil
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
from .install.installed import first_line, installed_version
from .parts.in_build import run_once
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

VERSION = "0.1.5.post1"
INSTALL = f"pip install sgl-deep-gemm=={VERSION}"
CAPABILITY = (9, 0)
TILE_ROWS = 128
"""Rows of the highest tile: an expert's room is whole tiles, so that no tile reaches into the next expert's."""
MOST_TOKENS = 1024
"""Room for every token in every expert is 8 GB for DeepSeek-V3 here, and grows with the tokens."""


class DeepGemm(Implementation):
    name = "deep_gemm"
    family = "library"
    source = f"PyPI sgl-deep-gemm {VERSION}: m_grouped_fp8_fp4_gemm_nt_masked, m_grouped_bf16_gemm_nt_masked"
    quants = ("none", "fp8_block")

    def version(self) -> str:
        return trees.record(trees.folder("deep_gemm")).get("sgl_deep_gemm", "") or installed_version("sgl-deep-gemm")

    def search_path(self) -> list[Path]:
        return trees.search_path("deep_gemm")

    def config(self, case: Case) -> str:
        return f"masked layout: capacity={capacity(case)} expected_m={expected_rows(case)}"

    def activations(self, case: Case) -> str:
        return "a8" if case.quant == "fp8_block" else "a16"

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.tokens > MOST_TOKENS:
            return unsupported(
                f"the masked layout has room for every token in every expert: up to {MOST_TOKENS} tokens"
            )
        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"the router takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        if case.quant == "none" and case.dtype != "bf16":
            return unsupported(f"DeepGEMM's 16-bit GEMMs take bf16 only, got {case.dtype}")
        return divisible(case, WHOLE_16_BYTES, "TMA needs rows of whole 16 bytes")

    def build(self, case: Case, weights: Weights) -> Forward:
        return run_once(masked_forward(case, weights), case, weights)


def capacity(case: Case) -> int:
    """Rows of room per expert: a token takes one at most."""
    return -(-case.tokens // TILE_ROWS) * TILE_ROWS


def expected_rows(case: Case) -> int:
    """The mean load of an expert, rounded up."""
    return -(-case.slots // case.num_experts)


def masked_forward(case: Case, weights: Weights) -> Forward:
    import deep_gemm
    import torch

    from tritonmoe_bench.kernels.fast.logits import launch_logits
    from tritonmoe_bench.kernels.fast.routing import launch_top_k

    from .parts.masked_rows import Rows, combine, place, scatter, silu_rows

    router, bias, quantize = weights.router(), weights.correction_bias(), case.quant == "fp8_block"
    room, expected = capacity(case), expected_rows(case)
    operands: tuple
    if quantize:
        operands = tuple((packed.values, packed.scales) for packed in (weights.packed_gate_up(), weights.packed_down()))
    else:
        operands = weights.gate_up("nk"), weights.down("nk")
    gate_up, down = operands

    def gemm(rows: Rows, stacked, width: int, counts: torch.Tensor) -> torch.Tensor:
        out = torch.empty((case.num_experts, room, width), dtype=torch.bfloat16, device=counts.device)
        if rows.scales is None:
            deep_gemm.m_grouped_bf16_gemm_nt_masked(rows.values, stacked, out, counts, expected)
        else:
            deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked((rows.values, rows.scales), stacked, out, counts, expected)
        return out

    def forward(x: torch.Tensor) -> torch.Tensor:
        experts, scores = launch_top_k(launch_logits(x, router), case.top_k, case.gate, bias)
        places = place(experts, case.num_experts, room)
        both = gemm(scatter(x, places, quantize), gate_up, 2 * case.ffn_dim, places.counts)
        out = gemm(silu_rows(both, places, quantize), down, case.hidden_dim, places.counts)
        return combine(out, places, scores, x.dtype)

    return forward


@functools.cache
def _problem() -> str:
    """Why DeepGEMM cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    if not any(os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")) and not _has_nvcc():
        return "DeepGEMM compiles its kernels at first use and finds no nvcc: set CUDA_HOME to a CUDA of 12.3 or later"
    try:
        import deep_gemm

        assert deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked
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


def _has_nvcc() -> bool:
    return shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists()
