"""`flashinfer_cutlass`: FlashInfer's `cutlass_fused_moe`, TensorRT-LLM's MoE layer, in bf16 and fp8_block on Hopper.

`builds/checkouts/fused_moe.py` compiles its kernels for these two formats behind a C interface (fused_moe.cu).
FlashInfer has no router for it: GEMM and top-k are those of `fast`. In bf16 each of its two GEMMs has tens of tactics,
CUTLASS's tiles for Hopper with either operand on the left, and tiles for Ampere; down also with the sum over experts in
its epilogue. `build` times all of them in the layer, with uniform routing, one GEMM after the other; FlashInfer's own
autotuner times each GEMM alone. In fp8_block there is no choice: TensorRT-LLM's copy of DeepGEMM, whose kernels nvcc
compiles in `build`, after kernels that quantise x and the intermediate by token and 128 columns (W8A8).
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Weights,
    unavailable,
    unsupported,
)

from .install import trees
from .install.installed import find_nvcc
from .parts.conversions import Conversions
from .parts.hopper import problem
from .parts.in_build import ConfiguredInBuild, run_once
from .parts.router import by_router
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

    Operand = tuple[torch.Tensor, torch.Tensor | None]
    """Stacked matrices, and their scales if they are packed."""

FOLDER = trees.folder("flashinfer_cutlass")
LIBRARY = "fused_moe.so"
MAKE = "python baselines/builds/checkouts/fused_moe.py"
COMPILER = "TRTLLM_DG_NVCC_COMPILER"
"""The environment variable that names the compiler of the kernels for fp8_block."""
GATE_UP, DOWN = 0, 1
Tactics = tuple[int, int]


class FlashinferCutlass(ConfiguredInBuild):
    name = "flashinfer_cutlass"
    family = "library"
    revision, revisions_up_to = by_router({15: 5})
    source = "PyPI flashinfer-python: cutlass_fused_moe (csrc/fused_moe/cutlass_backend), compiled here"
    quants = ("none", "fp8_block")

    def __init__(self) -> None:
        super().__init__()
        self._up_gate = Conversions(_up_gate)
        self._tactics: dict[tuple, Tactics] = {}

    def version(self) -> str:
        record = trees.record(FOLDER)
        return f"{record['flashinfer']} (nvcc {record['nvcc']})" if record else ""

    def activations(self, case: Case) -> str:
        return "a8" if case.quant == "fp8_block" else "a16"

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

        if fault := _problem():
            return unavailable(fault)
        if case.dtype != "bf16":
            return unsupported(f"compiled for bf16 activations alone, got {case.dtype}")
        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"the router takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        if case.quant == "none":
            return divisible(case, WHOLE_16_BYTES, "TMA needs rows of whole 16 bytes")
        if not find_nvcc():
            return unavailable("FlashInfer compiles its kernels for fp8_block at first use and finds no nvcc: "
                               "set CUDA_HOME to a CUDA of 12.8 or later")  # fmt: skip
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        library = load(FOLDER / LIBRARY)
        packed = weights.packed_down() if case.quant == "fp8_block" else None
        down = (packed.values, packed.scales) if packed else (weights.down("nk"), None)
        layer = Layer(library, case, self._up_gate(weights), down)
        key = (*case.weights_key, case.top_k, case.tokens)
        if key not in self._tactics:
            self._tactics[key] = tuned(layer, case, weights)
        layer.tactics = self._tactics[key]
        self.configured(case, layer.words)
        return run_once(_forward(layer, case, weights), case, weights)


class Refused(RuntimeError):
    """What the library said when it did not run."""


class Layer:
    """The experts of one case: rows, chosen experts and scores to the weighted sum, by one pair of tactics."""

    def __init__(self, library: Any, case: Case, up_gate: Operand, down: Operand) -> None:
        """up_gate: [num_experts, 2 * ffn, hidden], up rows then gate rows. Raises Refused."""
        self._library, self._operands = library, (*up_gate, *down)
        self._sizes = (case.tokens, case.hidden_dim, case.ffn_dim, case.num_experts, case.top_k)
        # A sum in down's epilogue is added to in the output's 16 bits; it is among FlashInfer's tactics by default.
        self._handle = library.moe_flashinfer_create(case.quant == "fp8_block", True, str(FOLDER).encode())
        if not self._handle:
            self.fail()
        weakref.finalize(self, library.moe_flashinfer_destroy, self._handle)
        self._workspace = library.moe_flashinfer_workspace(self._handle, *self._sizes)
        if self._workspace < 0:
            self.fail()
        self.tactics: Tactics = (0, 0)

    def count(self, gemm: int) -> int:
        """How many tactics one of the two GEMMs has."""
        return self._library.moe_flashinfer_tactics(self._handle, gemm)

    @property
    def words(self) -> str:
        """The two tactics, or whose choice they are where there is none."""
        if max(map(self.count, (GATE_UP, DOWN))) == 1:
            return "tiles by TensorRT-LLM's own rule"
        described = (self._library.moe_flashinfer_describe(self._handle, *pair) for pair in enumerate(self.tactics))
        return "; ".join(f"{name}: {text.decode()}" for name, text in zip(("gate_up", "down"), described))

    def __call__(self, x: torch.Tensor, experts: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """x: bf16 [tokens, hidden]; experts: int32, scores: float32, [tokens, top_k]. Raises Refused."""
        import torch

        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        workspace = torch.empty(self._workspace, dtype=torch.uint8, device=x.device)
        y = torch.empty_like(x)
        operands = (x, experts, scores, *self._operands, y, workspace)
        addresses = (None if operand is None else operand.data_ptr() for operand in operands)
        if self._library.moe_flashinfer_run(self._handle, *addresses, *self._sizes, *self.tactics, stream):
            self.fail()
        return y

    def fail(self) -> NoReturn:
        """Raises Refused, with what the library said last."""
        said = self._library.moe_flashinfer_error().decode().splitlines()  # a stack trace follows the first line
        raise Refused(f"FlashInfer's cutlass_fused_moe: {said[0] if said else 'no reason given'}")


def _up_gate(weights: Weights) -> Operand:
    """The first GEMM's weights in FlashInfer's order."""
    if weights.case.quant == "none":
        return up_first(weights.gate_up("nk")), None
    packed = weights.packed_gate_up()
    return up_first(packed.values), up_first(packed.scales)


def up_first(gate_up: torch.Tensor) -> torch.Tensor:
    """[num_experts, rows, columns] with its second half of rows before the first."""
    import torch

    whole = gate_up.view(torch.uint8)
    return whole.unflatten(1, (2, -1)).flip(1).flatten(1, 2).view(gate_up.dtype)


def _forward(layer: Layer, case: Case, weights: Weights) -> Forward:
    from tritonmoe_bench.kernels.fast.logits import launch_logits
    from tritonmoe_bench.kernels.fast.routing import launch_top_k

    router, bias = weights.router(), weights.correction_bias()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return layer(x, *launch_top_k(launch_logits(x, router), case.top_k, case.gate, bias))

    return forward


def tuned(layer: Layer, case: Case, weights: Weights) -> Tactics:
    """The tactics of the fastest layer: of gate and up first, then of down."""
    import torch

    from tritonmoe_bench.experiments.workload.routing import activations, draw_routing

    if max(map(layer.count, (GATE_UP, DOWN))) == 1:
        return (0, 0)
    uniform = replace(case, skew=0.0)
    x = activations(uniform, draw_routing(uniform), weights.device)
    forward = _forward(layer, case, weights)
    best = [0, 0]
    with torch.inference_mode():
        for gemm in (GATE_UP, DOWN):
            times = {}
            for tactic in range(layer.count(gemm)):
                best[gemm] = tactic
                layer.tactics = (best[GATE_UP], best[DOWN])
                times[tactic] = _graph_us(lambda: forward(x))
            best[gemm] = min(times, key=lambda tactic: times[tactic])
            if times[best[gemm]] == float("inf"):
                layer.fail()
    return best[GATE_UP], best[DOWN]


def _graph_us(call: Callable[[], object]) -> float:
    """Latency in a CUDA graph with a cold L2, in us; infinite for a tactic that does not take the shape."""
    from tritonmoe_bench.experiments.measure.timing import TimingSettings, time_calls

    settings = TimingSettings(samples=5, min_samples=3, budget_ms=4.0)
    try:
        return time_calls([call], "graph", settings, flush=True).p50_us
    except Refused:
        return float("inf")


@functools.cache
def load(path: Path) -> Any:
    """The library with its functions declared as in fused_moe.cu. Raises OSError if it does not load."""
    os.environ.setdefault(COMPILER, find_nvcc())
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)  # which the library calls without naming it
    return declared(ctypes.CDLL(str(path)))


def declared(library: Any) -> Any:
    integer, pointer, text, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_longlong
    for name, arguments, result in (
        ("moe_flashinfer_error", [], text),
        ("moe_flashinfer_create", [integer, integer, text], pointer),
        ("moe_flashinfer_destroy", [pointer], None),
        ("moe_flashinfer_tactics", [pointer, integer], integer),
        ("moe_flashinfer_describe", [pointer, integer, integer], text),
        ("moe_flashinfer_workspace", [pointer, *[integer] * 5], size),
        ("moe_flashinfer_run", [*[pointer] * 10, *[integer] * 7, pointer], integer),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


@functools.cache
def _problem() -> str:
    name = "FlashInfer's cutlass_fused_moe"
    return problem(name, FOLDER, MAKE, "nvcc 12.8 or later, and 20 minutes", lambda: load(FOLDER / LIBRARY))
