"""`cutlass_grouped`: CUTLASS 3's grouped GEMM for Hopper (pointer arrays, TMA, warp-specialised), natively.

builds/cutlass/grouped_gemm.cu instantiates CUTLASS's own collectives for a handful of tiles. Problem sizes and pointers
are made on the GPU, so the host never waits. The experts' rows are the N of the problem, so that few rows do not fill a
tile of 64. `build` times each tile on the shape, for each of the two GEMMs, with an even routing. Router, sort, permute
and combine are PyTorch's operators; SiLU x up is one small kernel.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import Case, Check, Forward, Weights, unavailable

from .install import trees
from .parts.hopper import problem
from .parts.in_build import ConfiguredInBuild
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

FOLDER = trees.folder("cutlass")
MAKE = "python baselines/builds/cutlass/build.py"
ERRORS = {
    -1: "no such tile",
    -2: "an argument that the kernel does not take",
    -3: "too little workspace",
    -4: "CUTLASS did not initialise or launch the kernel",
    -5: "a CUDA error",
}
TUNING_REPEATS = 10


class CutlassGrouped(ConfiguredInBuild):
    name = "cutlass_grouped"
    family = "library"
    source = "CUTLASS's Sm90 grouped GEMM collectives (PyPI nvidia-cutlass 4.2.0.0), compiled here"

    def version(self) -> str:
        record = trees.record(FOLDER)
        return f"CUTLASS {record['cutlass']} (nvcc {record['nvcc']})" if record else ""

    def check(self, case: Case) -> Check:
        if fault := _problem():
            return unavailable(fault)
        return divisible(case, WHOLE_16_BYTES, "TMA needs rows of whole 16 bytes")

    def build(self, case: Case, weights: Weights) -> Forward:
        gate_up, down = (
            GroupedGemm(load(FOLDER / f"{case.dtype}.so"), stacked)
            for stacked in (weights.gate_up("nk"), weights.down("nk"))
        )
        for gemm in (gate_up, down):
            gemm.tune(case.slots, _gpu_us)
        self.configured(case, f"gate_up: {gate_up.words}; down: {down.words}")
        return grouped_forward(case, weights, gate_up, down)


class GroupedGemm:
    """out [N, n] = rows [N, k] x weights [num_experts, n, k]^T for rows sorted by expert, by one of the tiles."""

    def __init__(self, library: Any, weights: torch.Tensor) -> None:
        import torch

        self._library, self._weights = library, weights
        self._num_experts, self.n, self.k = weights.shape
        self._tiles = range(library.moe_cutlass_tiles())
        size = max(library.moe_cutlass_workspace(tile, self._num_experts) for tile in self._tiles)
        self._workspace = torch.empty(size, dtype=torch.uint8, device=weights.device)
        self.tile = 0

    @property
    def words(self) -> str:
        """The tile: n x rows x k of one thread block, and CUTLASS's schedule."""
        return self._library.moe_cutlass_describe_tile(self.tile).decode()

    def __call__(self, rows: torch.Tensor, ends: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Writes and returns out; ends: int32 [num_experts]. Raises RuntimeError if nothing was launched."""
        import torch

        stream = torch.cuda.current_stream(rows.device).cuda_stream if rows.is_cuda else 0
        status = self._library.moe_cutlass_grouped_gemm(
            self.tile, self._weights.data_ptr(), rows.data_ptr(), out.data_ptr(), ends.data_ptr(), self._num_experts,
            self.n, self.k, self._workspace.data_ptr(), self._workspace.numel(), stream,
        )  # fmt: skip
        if status:
            raise RuntimeError(f"CUTLASS's grouped GEMM: {ERRORS.get(status, status)}, tile {self.words}")
        return out

    def tune(self, num_rows: int, time_us: Callable[[Callable[[], object]], float]) -> None:
        """Takes the fastest tile for that many rows, dealt evenly to the experts."""
        import torch

        device, dtype = self._weights.device, self._weights.dtype
        experts = torch.arange(1, self._num_experts + 1, device=device)
        ends = (experts * num_rows // self._num_experts).to(torch.int32)
        rows = torch.randn((num_rows, self.k), dtype=dtype, device=device)
        out = torch.empty((num_rows, self.n), dtype=dtype, device=device)
        times = {}
        for tile in self._tiles:
            self.tile = tile
            times[tile] = time_us(lambda: self(rows, ends, out))
        self.tile = min(times, key=lambda tile: times[tile])


def grouped_forward(case: Case, weights: Weights, gate_up: GroupedGemm, down: GroupedGemm) -> Forward:
    import torch

    from .parts.by_expert import Buffers, forward_by_expert

    def gemms(ends: torch.Tensor, buffers: Buffers) -> tuple[Callable[[], object], Callable[[], object]]:
        ends = ends.to(torch.int32)
        return lambda: gate_up(buffers.rows, ends, buffers.gate_up), lambda: down(buffers.hidden, ends, buffers.out)

    return forward_by_expert(case, weights, gemms)


@functools.cache
def load(path: Path) -> Any:
    """The library with its functions declared as in grouped_gemm.cu. Raises OSError if it does not load."""
    return declared(ctypes.CDLL(str(path)))


def declared(library: Any) -> Any:
    integer, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    for name, arguments, result in (
        ("moe_cutlass_tiles", [], integer),
        ("moe_cutlass_describe_tile", [integer], ctypes.c_char_p),
        ("moe_cutlass_workspace", [integer, integer], size),
        ("moe_cutlass_grouped_gemm", [integer, *[pointer] * 4, *[integer] * 3, pointer, size, pointer], integer),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def _gpu_us(call: Callable[[], object]) -> float:
    """Mean time of one call on the GPU, in us."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    begin.record()
    for _ in range(TUNING_REPEATS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / TUNING_REPEATS


@functools.cache
def _problem() -> str:
    needs = "nvcc 12 or later; torch_grouped_mm and megablocks_grouped_cutlass run CUTLASS too"
    libraries = [FOLDER / f"{dtype}.so" for dtype in ("bf16", "fp16")]
    return problem("CUTLASS's grouped GEMM", FOLDER, MAKE, needs, lambda: list(map(load, libraries)), gpu=False)
