"""`flashinfer_mono`: FlashInfer's one-launch MoE kernel, `mono_moe`: routing, both GEMMs and the sum, in fp8_block.

It has one shape, that of Qwen3.5-35B-A3B, and takes up to 8 tokens. The router's GEMM comes before it, by PyTorch. It
quantises x and the intermediate by token and 128 columns (W8A8). Its blocks wait for each other within the launch, by
counters in a scratch buffer which they leave ready for the next. `builds/checkouts/kernels.py` compiles this kernel
alone out of FlashInfer's sources, behind a C interface (mono_moe.cu).
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
    unsupported,
)
from tritonmoe_bench.kernels.gating import Gating

from .install import trees
from .parts.conversions import Conversions
from .parts.hopper import problem
from .parts.in_build import run_once

if TYPE_CHECKING:
    import torch

FOLDER = trees.folder("flashinfer")
LIBRARY = "mono_moe.so"
MAKE = "python baselines/builds/checkouts/kernels.py flashinfer"
SHAPE = (256, 2048, 512)
"""num_experts, hidden_dim, ffn_dim."""
MOST = 8
"""Tokens, and experts of a token."""
TURN = 8
"""Rows of gate that lie before as many of up."""
ERRORS = {
    -1: "an argument that the kernel does not take",
    -2: "the GPU has fewer multiprocessors than the kernel has blocks",
    -3: "the driver refused a TMA descriptor",
    -4: "a CUDA error",
}


class FlashinferMono(Implementation):
    name = "flashinfer_mono"
    family = "library"
    source = "PyPI flashinfer-python: csrc/fused_moe/monomoe, compiled here"
    quants = ("fp8_block",)

    def __init__(self) -> None:
        self._gate_up = Conversions(lambda weights: in_turns(weights.packed_gate_up().values))

    def version(self) -> str:
        record = trees.record(FOLDER)
        return f"{record['flashinfer']} (nvcc {record['nvcc']})" if record else ""

    def activations(self, case: Case) -> str:
        return "a8"

    def check(self, case: Case) -> Check:
        if fault := _problem():
            return unavailable(fault)
        if (case.num_experts, case.hidden_dim, case.ffn_dim) != SHAPE:
            return unsupported("mono_moe has one shape: {} experts, hidden_dim={}, ffn_dim={}".format(*SHAPE))
        if case.tokens > MOST or case.top_k > MOST:
            return unsupported(f"mono_moe takes up to {MOST} tokens and top_k up to {MOST}")
        if case.dtype != "bf16":
            return unsupported(f"mono_moe takes bf16 activations only, got {case.dtype}")
        if case.gate != Gating(scoring=case.gate.scoring, renormalize=case.gate.renormalize):
            return unsupported(f"gating={case.gating}: mono_moe has softmax and sigmoid without groups, bias and scale")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        kernel = load(FOLDER / LIBRARY)
        return run_once(forward_by(kernel, case, weights, self._gate_up(weights)), case, weights)


def in_turns(gate_up: torch.Tensor) -> torch.Tensor:
    """[E, 2 * ffn, hidden], gate rows then up rows, as mono_moe reads it: eight rows of each in turns."""
    import torch

    experts, rows, columns = gate_up.shape
    halves = gate_up.view(torch.uint8).view(experts, 2, rows // 2 // TURN, TURN, columns)
    return halves.transpose(1, 2).reshape(gate_up.shape).view(gate_up.dtype)


def forward_by(kernel: Any, case: Case, weights: Weights, gate_up: torch.Tensor) -> Forward:
    """The layer by the library that is given; gate_up: as of `in_turns`."""
    import torch

    router, gate_up_scales, down = weights.router(), weights.packed_gate_up().scales, weights.packed_down()
    scratch = torch.zeros(kernel.moe_mono_scratch_bytes(), dtype=torch.uint8, device=weights.device)
    softmax, renormalize = case.gate.scoring == "softmax", case.gate.renormalize

    def forward(x: torch.Tensor) -> torch.Tensor:
        logits, y = torch.nn.functional.linear(x, router), torch.empty_like(x)
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        operands = (x, logits, gate_up, gate_up_scales, down.values, down.scales, y, scratch)
        status = kernel.moe_mono_launch(
            *(operand.data_ptr() for operand in operands), x.shape[0], case.top_k, softmax, renormalize, stream
        )
        if status:
            raise RuntimeError(f"mono_moe: {ERRORS.get(status, status)}")
        return y

    return forward


@functools.cache
def load(path: Path) -> Any:
    """The library with its functions declared as in mono_moe.cu. Raises OSError if it does not load."""
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)  # which the library calls without naming it
    return declared(ctypes.CDLL(str(path)))


def declared(library: Any) -> Any:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    for name, arguments, result in (
        ("moe_mono_scratch_bytes", [], ctypes.c_longlong),
        ("moe_mono_launch", [*[pointer] * 8, *[integer] * 4, pointer], integer),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


@functools.cache
def _problem() -> str:
    return problem("FlashInfer's mono_moe", FOLDER, MAKE, "nvcc 12 or later", lambda: load(FOLDER / LIBRARY))
