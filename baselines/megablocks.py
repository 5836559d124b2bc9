"""Megablocks 0.10 (arXiv 2211.15841): its dropless layer dMoE with SwiGLU experts, by each of its three expert paths.

`megablocks_sparse` multiplies by stanford-stk's block-sparse Triton kernels, the layout of the Megablocks paper;
`megablocks_grouped_cublas` and `megablocks_grouped_cutlass` by the two builds of grouped_gemm. `make megablocks` builds
all of them into .megablocks/; without it an installed megablocks serves for what it can do.
"""

from __future__ import annotations

import functools
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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

if TYPE_CHECKING:
    import torch


FOLDER = ROOT / ".megablocks"
PATCHES = ROOT / "baselines" / "builds" / "megablocks" / "patches"
MAKE = "make megablocks"
BLOCK = 128
"""Side of a block of stanford-stk's sparse matrices: hidden_dim and ffn_dim must be whole blocks."""
CUTLASS_ALIGNMENT = 8
"""Elements: grouped_gemm's CUTLASS kernels load rows in pieces of 16 bytes and do not check."""
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
            return _record()["packages"]["megablocks"]
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("megablocks")
        except PackageNotFoundError:
            return ""

    def search_path(self) -> list[Path]:
        built = [FOLDER / name for name in self.folders]
        return built if _record() and all(folder.is_dir() for folder in built) else []

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
        forward(torch.randn(case.tokens, case.hidden_dim, dtype=weights.dtype, device=weights.device))
        return forward


class MegablocksSparse(_Megablocks):
    """Expert GEMMs as products with a block-sparse matrix: rows of an expert are padded to whole blocks of 128."""

    name = "megablocks_sparse"
    source = "PyPI megablocks 0.10.0, stanford-stk 0.7.1"
    host_sync = PADDING_SYNC
    folders = ("common",)
    mlp_impl = "sparse"

    def check_shape(self, case: Case) -> Check:
        if case.hidden_dim % BLOCK or case.ffn_dim % BLOCK:
            return unsupported(f"stanford-stk's blocks are {BLOCK} wide: hidden_dim={case.hidden_dim} and "
                               f"ffn_dim={case.ffn_dim} must both be multiples of {BLOCK}")  # fmt: skip
        blocks = case.num_experts * case.ffn_dim // BLOCK
        if blocks > 2**15 - 1:
            return unsupported(f"num_experts x ffn_dim is {blocks} blocks of {BLOCK}: stanford-stk has int16 for them")
        return OK


class _Grouped(_Megablocks):
    """Expert GEMMs by grouped_gemm over rows sorted by expert, with no padding."""

    host_sync = COUNTS_SYNC
    mlp_impl = "grouped"

    def check_shape(self, case: Case) -> Check:
        if case.dtype != "bf16":
            return unsupported(f"grouped_gemm takes bf16 only, got {case.dtype}")
        return OK


class MegablocksGroupedCublas(_Grouped):
    """grouped_gemm's default backend: one cuBLAS call an expert, from a loop on the host."""

    name = "megablocks_grouped_cublas"
    source = "PyPI megablocks 0.10.0, grouped_gemm 0.3.0"
    folders = ("grouped_cublas", "common")
    backend = "cublas"


class MegablocksGroupedCutlass(_Grouped):
    """grouped_gemm built with GROUPED_GEMM_CUTLASS=1: one CUTLASS 2 grouped kernel a GEMM."""

    name = "megablocks_grouped_cutlass"
    source = "PyPI megablocks 0.10.0, grouped_gemm 0.3.0 built with GROUPED_GEMM_CUTLASS=1"
    folders = ("grouped_cutlass", "common")
    backend = "cutlass"

    def check_shape(self, case: Case) -> Check:
        if case.hidden_dim % CUTLASS_ALIGNMENT or case.ffn_dim % CUTLASS_ALIGNMENT:
            return unsupported(f"grouped_gemm's CUTLASS kernels need hidden_dim={case.hidden_dim} and "
                               f"ffn_dim={case.ffn_dim} divisible by {CUTLASS_ALIGNMENT}")  # fmt: skip
        return super().check_shape(case)


def _layer(case: Case, weights: Weights, mlp_impl: str) -> torch.nn.Module:
    """dMoE in its leanest inference setting, its parameters being views of the workload's tensors.

    Made on the meta device, where its own parameters take no memory. Its experts compute
    ``(silu(x @ w1.T) * (x @ v1.T)) @ w2`` with w1, v1 and w2 all [num_experts * ffn_dim, hidden_dim].
    """
    import torch

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
    _set(layer.router.layer, "weight", weights.router())
    _set(layer.experts.mlp, "w1", weights.gate("nk").flatten(0, 1))
    _set(layer.experts.mlp, "v1", weights.up("nk").flatten(0, 1))
    _set(layer.experts.mlp, "w2", weights.down("kn").flatten(0, 1))
    left = [name for name, tensor in layer.named_parameters() if tensor.is_meta]
    if left:
        raise ValueError(f"this Megablocks has parameters that the adapter does not know: {', '.join(left)}")
    return layer


def _set(module: Any, name: str, tensor: torch.Tensor) -> None:
    """Makes `tensor` itself the parameter. Raises ValueError if Megablocks wants another shape or dtype."""
    import torch

    wanted = getattr(module, name)
    if wanted.shape != tensor.shape or wanted.dtype != tensor.dtype:
        raise ValueError(f"Megablocks wants {name} as {tuple(wanted.shape)} {wanted.dtype}, the workload has "
                         f"{tuple(tensor.shape)} {tensor.dtype}")  # fmt: skip
    setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))


def _leave(tensor: torch.Tensor) -> None:
    """Initialises nothing: every parameter is replaced."""


def _record() -> dict[str, Any]:
    """BUILD.json of .megablocks: what it was built for; empty if it was not built."""
    path = FOLDER / "BUILD.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


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
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{type(error).__name__}: {line}{_mismatch(torch.__version__)}: {MAKE}"
    if backend:
        found = grouped_gemm_kind(Path(grouped_gemm_backend.__file__))
        if found != backend:
            return f"the grouped_gemm that is installed was built for its {found} backend, not for {backend}: {MAKE}"
    try:
        Arguments(mlp_impl=mlp_impl, device="meta")
    except (ValueError, AssertionError) as error:
        return f"the megablocks that is installed says: {error}: {MAKE}"
    return _wrong_gpu(torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""


def grouped_gemm_kind(library: Path) -> str:
    """``cutlass`` or ``cublas``: which backend a compiled grouped_gemm holds, told by the names of its kernels."""
    return "cutlass" if b"GemmGrouped" in library.read_bytes() else "cublas"


def _mismatch(torch_version: str) -> str:
    """What .megablocks was built for, if that is not this Python and torch."""
    record = _record()
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not record or (record["python"], record["torch"]) == (python, torch_version):
        return ""
    return f" (built for Python {record['python']}, torch {record['torch']}; this is {python}, {torch_version})"


def _wrong_gpu(capability: tuple[int, int]) -> str:
    """Machine code serves its own generation, from its own minor version on."""
    archs = [arch.removesuffix("+PTX").split(".") for arch in _record().get("arch", "").split(";") if arch]
    if not archs or any(int(major) == capability[0] and int(minor) <= capability[1] for major, minor in archs):
        return ""
    have = f"{capability[0]}.{capability[1]}"
    return f"built for compute capability {_record()['arch']}, this GPU has {have}: {MAKE}"
