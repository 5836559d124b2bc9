"""Megablocks 0.10 (arXiv 2211.15841): its dropless layer dMoE with SwiGLU experts, by each of its three expert paths.

`megablocks_sparse` multiplies by stanford-stk's block-sparse Triton kernels, the layout of the Megablocks paper;
`megablocks_grouped_cublas` and `megablocks_grouped_cutlass` by the two builds of grouped_gemm. `make megablocks` builds
all of them into .megablocks/; without it an installed megablocks serves for what it can do.
"""

from __future__ import annotations

import functools
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tritonmoe_bench import ROOT
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
from tritonmoe_bench.kernels.gating import Gating

from .install import trees
from .install.installed import first_line, installed_version
from .parts.in_build import run_once
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

FOLDER = ROOT / ".megablocks"
MAKE = "make megablocks"
BUILD = "python baselines/builds/megablocks/build.py"
BLOCK = 128
"""Side of a block of stanford-stk's sparse matrices: hidden_dim and ffn_dim must be whole blocks."""
COUNTS_SYNC = (
    "tokens_per_expert.cpu() in GroupedGLU.forward: the host waits for the counts, because it launches grouped_gemm "
    "with problem sizes from its own memory"
)
PADDING_SYNC = (
    "padded_bins[-1].cpu().item() in padded_gather: the host waits for the padded row count to size the activations "
    "and the sparse topology"
)


class _Megablocks(Implementation):
    """What the three paths share. folders: of .megablocks, in order; mlp_impl: as Megablocks calls the path."""

    family = "megablocks"
    folders: ClassVar[tuple[str, ...]]
    mlp_impl: ClassVar[str]
    backend: ClassVar[str] = ""
    """Of grouped_gemm, which the sparse path does not use."""

    def version(self) -> str:
        if self.search_path():
            return trees.record(FOLDER)["packages"]["megablocks"]
        return installed_version("megablocks")

    def search_path(self) -> list[Path]:
        built = [FOLDER / name for name in self.folders]
        return built if trees.record(FOLDER) and all(folder.is_dir() for folder in built) else []

    def config(self, case: Case) -> str:
        return f"mlp_impl={self.mlp_impl}" + (f" grouped_gemm={self.backend}" if self.backend else f" block={BLOCK}")

    def check(self, case: Case) -> Check:
        problem = _problem(self.mlp_impl, self.backend)
        if problem:
            return unavailable(problem)
        if replace(case.gate, renormalize=False) != Gating():
            return unsupported(f"gating={case.gating}: Megablocks' LearnedRouter only has softmax over all experts, "
                               "then top-k, renormalised or not")  # fmt: skip
        return self.check_shape(case)

    def check_shape(self, case: Case) -> Check:
        """`unsupported` for what the expert path cannot multiply."""
        raise NotImplementedError

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        layer = _layer(case, weights, self.mlp_impl)

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return layer(x.unsqueeze(1)).squeeze(1)  # Megablocks' x is [sequence, batch, hidden]

        # Compiles the Triton kernels of this shape and tunes the copy kernels (triton.autotune, keyed by hidden_dim).
        return run_once(forward, case, weights)


class MegablocksSparse(_Megablocks):
    """Expert GEMMs as products with a block-sparse matrix: rows of an expert are padded to whole blocks of 128."""

    name = "megablocks_sparse"
    source = "PyPI megablocks 0.10.0, stanford-stk 0.7.1"
    host_sync = PADDING_SYNC
    folders = ("common",)
    mlp_impl = "sparse"

    def check_shape(self, case: Case) -> Check:
        blocks = case.num_experts * case.ffn_dim // BLOCK
        if blocks > 2**15 - 1:
            return unsupported(f"num_experts x ffn_dim is {blocks} blocks of {BLOCK}: stanford-stk has int16 for them")
        return divisible(case, BLOCK, f"stanford-stk's blocks are {BLOCK} wide")


class _Grouped(_Megablocks):
    """Expert GEMMs by grouped_gemm over rows sorted by expert, with no padding."""

    host_sync = COUNTS_SYNC
    mlp_impl = "grouped"

    def check_shape(self, case: Case) -> Check:
        if case.dtype != "bf16":
            return unsupported(f"grouped_gemm takes bf16 only, got {case.dtype}")
        return OK


class MegablocksGroupedCublas(_Grouped):
    """grouped_gemm's default backend: one cuBLAS call per expert, from a loop on the host."""

    name = "megablocks_grouped_cublas"
    source = "PyPI megablocks 0.10.0, grouped_gemm 0.3.0"
    folders = ("grouped_cublas", "common")
    backend = "cublas"


class MegablocksGroupedCutlass(_Grouped):
    """grouped_gemm built with GROUPED_GEMM_CUTLASS=1: one CUTLASS 2 grouped kernel per GEMM."""

    name = "megablocks_grouped_cutlass"
    source = "PyPI megablocks 0.10.0, grouped_gemm 0.3.0 built with GROUPED_GEMM_CUTLASS=1"
    folders = ("grouped_cutlass", "common")
    backend = "cutlass"

    def check_shape(self, case: Case) -> Check:
        check = super().check_shape(case)
        if check is not OK:
            return check
        # Its kernels load rows in pieces of 16 bytes and do not check.
        return divisible(case, WHOLE_16_BYTES, "grouped_gemm's CUTLASS kernels need rows of whole 16 bytes")


def _layer(case: Case, weights: Weights, mlp_impl: str) -> torch.nn.Module:
    """dMoE in its leanest inference setting, its parameters being views of the workload's tensors.

    Made on the meta device, where its own parameters take no memory. Its experts compute
    ``(silu(x @ w1.T) * (x @ v1.T)) @ w2`` with w1, v1 and w2 all [num_experts * ffn_dim, hidden_dim].
    """
    import torch

    from .parts.parameters import check_none_left, put

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that grouped_gemm is missing, which the sparse path does not use
        from megablocks.layers.arguments import Arguments
        from megablocks.layers.dmoe import dMoE
    arguments = Arguments(
        hidden_size=case.hidden_dim,
        ffn_hidden_size=case.ffn_dim,
        moe_num_experts=case.num_experts,
        moe_top_k=case.top_k,
        moe_normalize_expert_weights=1 if case.gate.renormalize else None,  # the norm to divide by: L1
        moe_loss_weight=0.0,
        mlp_type="glu",
        mlp_impl=mlp_impl,
        activation_fn=torch.nn.functional.silu,
        bias=False,
        return_bias=False,
        fp16=case.dtype == "fp16",
        bf16=case.dtype == "bf16",
        device=torch.device("meta"),
        init_method=_leave,
        output_layer_init_method=_leave,
    )
    layer = dMoE(arguments).eval()
    stacked = {"w1": weights.gate("nk"), "v1": weights.up("nk"), "w2": weights.down("kn")}
    put("Megablocks", layer.router.layer, {"weight": weights.router()}, same_dtype=True)
    put("Megablocks", layer.experts.mlp, {name: each.flatten(0, 1) for name, each in stacked.items()}, same_dtype=True)
    check_none_left("Megablocks", layer)
    return layer


def _leave(tensor: torch.Tensor) -> None:
    """Initialises nothing: every parameter is replaced."""


@functools.cache
def _problem(mlp_impl: str, backend: str) -> str:
    """Why the path cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import stk  # noqa: F401
            from megablocks.layers.arguments import Arguments

            if backend:
                import grouped_gemm_backend
    except Exception as error:  # a library built for another torch fails in ways of its own
        return f"{first_line(error)}{_mismatch(torch.__version__)}: {MAKE}"
    if backend:
        found = grouped_gemm_kind(Path(grouped_gemm_backend.__file__))
        if found != backend:
            return f"the grouped_gemm that is installed was built for its {found} backend, not for {backend}: {MAKE}"
    try:
        Arguments(mlp_impl=mlp_impl, device="meta")
    except (ValueError, AssertionError) as error:
        return f"the megablocks that is installed says: {error}: {MAKE}"
    return trees.wrong_gpu(FOLDER, torch.cuda.get_device_capability(), BUILD) if torch.cuda.is_available() else ""


def grouped_gemm_kind(library: Path) -> str:
    """``cutlass`` or ``cublas``: which backend a compiled grouped_gemm holds, told by the names of its kernels."""
    return "cutlass" if b"GemmGrouped" in library.read_bytes() else "cublas"


def _mismatch(torch_version: str) -> str:
    """What .megablocks was built for, if that is not this Python and torch."""
    record = trees.record(FOLDER)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not record or (record["python"], record["torch"]) == (python, torch_version):
        return ""
    return f" (built for Python {record['python']}, torch {record['torch']}; this is {python}, {torch_version})"
