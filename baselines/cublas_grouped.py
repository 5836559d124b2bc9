"""`cublas_grouped`: cuBLAS's own grouped GEMM, called directly in the libcublas that PyTorch ships.

Each of the two expert GEMMs is one `cublasGemmGroupedBatchedEx` with one group per active expert, over exact rows.
Router, sort, permute and combine are PyTorch's operators; SiLU x up is one small kernel. The counts cross to the host
once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import (
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
)

from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'torch>=2.11' (a build for CUDA 12.5 or later)"


class CublasGrouped(Implementation):
    name = "cublas_grouped"
    family = "library"
    source = "cublasGemmGroupedBatchedEx of the libcublas in PyTorch's wheels, by ctypes"
    host_sync = (
        "cublasGemmGroupedBatchedEx takes m, n, k and the leading dimensions from host memory: the host waits for the "
        "experts' counts"
    )

    def version(self) -> str:
        return "" if _problem() else f"cuBLAS {_version()}"

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        return divisible(case, WHOLE_16_BYTES, "cuBLAS's 16-bit grouped GEMM needs rows of whole 16 bytes")

    def config(self, case: Case) -> str:
        return "one group an active expert, COMPUTE_32F"

    def build(self, case: Case, weights: Weights) -> Forward:
        from .parts.cublas import library

        return grouped_forward(case, weights, library.load())


def grouped_forward(case: Case, weights: Weights, cublas: Any) -> Forward:
    """The forward over the cuBLAS that is given, with its functions declared as by `cublas.library.declared`."""
    import torch

    from .parts.by_expert import Buffers, forward_by_expert
    from .parts.cublas.library import Handle
    from .parts.cublas.problems import MATRICES, ExpertGemm, Groups
    from .parts.host_ends import HostEnds

    device, num_experts = weights.device, case.num_experts
    host_ends, handle = HostEnds(num_experts, device), Handle(cublas, device)
    gate_up, down = ExpertGemm(weights.gate_up("nk")), ExpertGemm(weights.down("nk"))
    on_gpu = torch.empty(2 * MATRICES * num_experts, dtype=torch.int64, device=device)
    pinned = torch.empty(on_gpu.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
    on_host = pinned.numpy()

    def gemms(ends: torch.Tensor, buffers: Buffers) -> tuple[Callable[[], None], Callable[[], None]]:
        groups = Groups(host_ends.wait())
        size = MATRICES * len(groups)
        # The copy before this one has been made: the wait came after it in the same stream.
        on_host[:size] = gate_up.pointers(groups, buffers.rows, buffers.gate_up).ravel()
        on_host[size : 2 * size] = down.pointers(groups, buffers.hidden, buffers.out).ravel()
        on_gpu[: 2 * size].copy_(pinned[: 2 * size], non_blocking=True)
        first = on_gpu.data_ptr()
        second = first + size * on_gpu.element_size()
        return lambda: gate_up.launch(handle, groups, first), lambda: down.launch(handle, groups, second)

    return forward_by_expert(case, weights, gemms, begin=host_ends.copy)


@functools.cache
def _version() -> str:
    from .parts.cublas import library

    return library.version(library.load())


@functools.cache
def _problem() -> str:
    """Why there is no grouped GEMM here, with the command that would bring it; empty if there is one."""
    from .parts.cublas import library

    try:
        library.load()
    except OSError as error:
        return f"{error}: {INSTALL}"
    except AttributeError as error:
        return f"this libcublas is too old, {error}: {INSTALL}"
    return ""
