"""`magma_vbatched`: MAGMA's batched GEMM of variable sizes, `magmablas_sgemm_vbatched`, in float32.

MAGMA has it in float32, float64 and complex; its one 16-bit batched GEMM, `magmablas_hgemm_batched`, has one size for
all matrices, and there is none for bfloat16. So the weights are widened to float32 in `build`, and the rows of x in the
forward: twice the bytes of a 16-bit GEMM, and no tensor cores. Sizes and addresses of the experts' matrices are made on
the GPU. The form with the largest sizes given is called (`_max_nocheck`), so that the host never waits: an expert has
as many rows as there are tokens at most. Router, sort, permute and combine are PyTorch's operators; SiLU x up is one
small kernel. `builds/checkouts/kernels.py` compiles this one file of MAGMA's.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
)

from .install import trees
from .parts.conversions import Conversions
from .parts.hopper import problem
from .parts.in_build import run_once

if TYPE_CHECKING:
    import torch

FOLDER = trees.folder("magma")
LIBRARY = "sgemm_vbatched.so"
MAKE = "python baselines/builds/checkouts/kernels.py magma"


class MagmaVbatched(Implementation):
    name = "magma_vbatched"
    family = "library"
    source = "github.com/icl-utk-edu/magma: magmablas_sgemm_vbatched, compiled here"

    def __init__(self) -> None:
        self._operands = Conversions(widened)

    def version(self) -> str:
        record = trees.record(FOLDER)
        return f"{record['magma']} (commit {record['commit'][:12]}, nvcc {record['nvcc']})" if record else ""

    def config(self, case: Case) -> str:
        return "float32 weights and rows, tiles of 64 columns x 40 rows x 16"

    def check(self, case: Case) -> Check:
        fault = _problem()
        return unavailable(fault) if fault else OK

    def build(self, case: Case, weights: Weights) -> Forward:
        library = load(FOLDER / LIBRARY)
        return run_once(grouped_forward(case, weights, *self._operands(weights), library), case, weights)


def widened(weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [num_experts, 2 * ffn, hidden], gate rows first, and [num_experts, hidden, ffn], expert by expert, so
    that the 16-bit weights are never all there beside them."""
    import torch

    case, device = weights.case, weights.device
    experts, hidden, ffn = case.num_experts, case.hidden_dim, case.ffn_dim
    gate_up = torch.empty((experts, 2 * ffn, hidden), dtype=torch.float32, device=device)
    down = torch.empty((experts, hidden, ffn), dtype=torch.float32, device=device)
    for index in range(experts):
        gate, up, one = weights.expert(index)
        gate_up[index, :ffn], gate_up[index, ffn:], down[index] = gate, up, one
    return gate_up, down


class VariableGemm:
    """out [N, n] = rows [N, k] x weights [num_experts, n, k]^T, all float32, for rows sorted by expert."""

    def __init__(self, library: Any, weights: torch.Tensor) -> None:
        import torch

        self._library, self._weights = library, weights
        self.num_experts, self.n, self.k = weights.shape
        device = weights.device

        def sizes(size: int) -> torch.Tensor:
            return torch.full((self.num_experts,), size, dtype=torch.int32, device=device)

        self._sizes = sizes(self.n), sizes(self.k)
        one = self.n * self.k * weights.element_size()
        self._addresses = weights.data_ptr() + one * torch.arange(self.num_experts, device=device)

    def __call__(
        self, rows: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor, out: torch.Tensor, most: int
    ) -> None:
        """starts: int64, counts: int32, [num_experts]; most: no expert has more rows. Raises RuntimeError."""
        import torch

        inward = rows.data_ptr() + starts * (self.k * rows.element_size())
        outward = out.data_ptr() + starts * (self.n * out.element_size())
        n, k = self._sizes
        arrays = (n, counts, k, self._addresses, inward, outward)
        stream = torch.cuda.current_stream(rows.device).cuda_stream if rows.is_cuda else 0
        status = self._library.moe_magma_sgemm_vbatched(
            self.n, most, self.k, *(array.data_ptr() for array in arrays), self.num_experts, stream
        )
        if status:
            raise RuntimeError(f"MAGMA's vbatched GEMM: CUDA error {status}")


def grouped_forward(case: Case, weights: Weights, gate_up: torch.Tensor, down: torch.Tensor, library: Any) -> Forward:
    """The forward over the library that is given, with its function declared as by `declared`."""
    import torch

    from .parts.by_expert import ByExpert
    from .parts.silu_gate import silu_gate

    layer, first, second = ByExpert(case, weights), VariableGemm(library, gate_up), VariableGemm(library, down)

    def forward(x: torch.Tensor) -> torch.Tensor:
        slots = layer.sort(x)
        starts = torch.nn.functional.pad(slots.ends[:-1], (1, 0))
        counts = (slots.ends - starts).to(torch.int32)
        rows = layer.rows(x.float(), slots)
        both, hidden = (rows.new_empty((rows.shape[0], width)) for width in (2 * case.ffn_dim, case.ffn_dim))
        out = torch.empty_like(rows)
        first(rows, starts, counts, both, x.shape[0])
        second(silu_gate(both, hidden), starts, counts, out, x.shape[0])
        return layer.combine(out, slots).to(x.dtype)

    return forward


@functools.cache
def load(path: Path) -> Any:
    """The library with its function declared as in sgemm_vbatched.cu. Raises OSError if it does not load."""
    return declared(ctypes.CDLL(str(path)))


def declared(library: Any) -> Any:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    function = library.moe_magma_sgemm_vbatched
    function.argtypes, function.restype = [*[integer] * 3, *[pointer] * 6, integer, pointer], integer
    return library


@functools.cache
def _problem() -> str:
    return problem(
        "MAGMA's sgemm_vbatched", FOLDER, MAKE, "nvcc 12 or later", lambda: load(FOLDER / LIBRARY), gpu=False
    )
