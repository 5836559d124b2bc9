"""Makes a process take its GPU for one that is not there, as far as choosing tiles and compiling kernels goes.

Tensors have no storage: shapes, strides and dtypes are right, and what a kernel would compute is not.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
import triton
from torch._subclasses import fake_tensor
from triton.backends.compiler import GPUTarget

from tritonmoe_bench.kernels.fast import layer
from tritonmoe_bench.kernels.formats import Packed, formats
from tritonmoe_bench.kernels.formats.four_bits import BLOCK, ROWS, FourBits
from tritonmoe_bench.kernels.formats.mxfp4 import Mxfp4

from ..workload.case import Case
from ..workload.routing import TORCH_DTYPE
from ..workload.weights import Layout
from .gpus import Gpu

TUNED: dict[int | str, str] = {90: "NVIDIA H200"}
"""By architecture, the device whose name the process gives its GPU, so that the tuned table of that device is taken."""


class Driver:
    """What Triton asks of a driver to compile, and nothing of what it asks to launch."""

    def __init__(self, gpu: Gpu) -> None:
        self.target = GPUTarget(gpu.backend, gpu.arch, gpu.warp_size)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Blank:
    """The weights of a case, without storage, as far as systems whose launches are recorded ask for them."""

    device = torch.device("cuda")

    def __init__(self, case: Case) -> None:
        self.case, self.dtype = case, TORCH_DTYPE[case.dtype]

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def router(self) -> torch.Tensor:
        dtype = torch.float32 if self.case.facts.float32_router else None
        return self.empty(self.case.num_experts, self.case.hidden_dim, dtype=dtype)

    def router_bias(self) -> torch.Tensor | None:
        return self.empty(self.case.num_experts) if self.case.facts.router_bias else None

    def gate_up_bias(self) -> torch.Tensor | None:
        return self.empty(self.case.num_experts, 2 * self.case.ffn_dim) if self.case.facts.expert_bias else None

    def down_bias(self) -> torch.Tensor | None:
        return self.empty(self.case.num_experts, self.case.hidden_dim) if self.case.facts.expert_bias else None

    def shared_gate_up(self) -> torch.Tensor:
        return self.empty(2 * self.case.facts.shared_ffn, self.case.hidden_dim)

    def shared_down(self) -> torch.Tensor:
        return self.empty(self.case.hidden_dim, self.case.facts.shared_ffn)

    def shared_router(self) -> torch.Tensor | None:
        return self.empty(1, self.case.hidden_dim) if self.case.facts.shared_gate else None

    def _stacked(self, with_shared: bool) -> int:
        return self.case.num_experts + with_shared * (self.case.facts.shared_ffn // self.case.ffn_dim)

    def gate(self, layout: Layout = "nk") -> torch.Tensor:
        return self._in(layout, self.case.num_experts, self.case.ffn_dim, self.case.hidden_dim)

    up = gate

    def gate_up(self, layout: Layout = "nk", with_shared: bool = False) -> torch.Tensor:
        return self._in(layout, self._stacked(with_shared), 2 * self.case.ffn_dim, self.case.hidden_dim)

    def down(self, layout: Layout = "nk", with_shared: bool = False) -> torch.Tensor:
        return self._in(layout, self._stacked(with_shared), self.case.hidden_dim, self.case.ffn_dim)

    def _in(self, layout: Layout, experts: int, n: int, k: int) -> torch.Tensor:
        return self.empty(experts, n, k) if layout == "nk" else self.empty(experts, k, n)

    def packed_gate_up(self, with_shared: bool = False) -> Packed:
        return self._packed(self.gate_up(with_shared=with_shared))

    def packed_down(self, with_shared: bool = False) -> Packed:
        return self._packed(self.down(with_shared=with_shared))

    def _packed(self, weights: torch.Tensor) -> Packed:
        """Weights of that shape in the case's format, of four bits as `prepared` gives them."""
        kind = formats()[self.case.quant]
        (experts, rows, columns), parts = weights.shape, []
        if not issubclass(kind, FourBits):
            return kind.pack(weights)
        scale = torch.uint8 if kind is Mxfp4 else weights.dtype
        for share, dtype in ((8, torch.int32), (kind.least, scale)):
            whole = -(-columns // BLOCK) * ROWS * BLOCK // share
            room = self.empty(experts, rows // ROWS, whole, dtype=dtype)
            parts.append(room[:, :, : ROWS * columns // share])
        return kind(*parts)

    def correction_bias(self) -> torch.Tensor | None:
        return self.empty(self.case.num_experts, dtype=torch.float32) if self.case.gate.correction_bias else None


def pretend(gpu: Gpu) -> None:
    """Makes this process believe that its GPU is `gpu`. Nothing takes it back."""
    major, minor = gpu.capability
    name = TUNED.get(gpu.arch, gpu.label)
    properties: Any = types.SimpleNamespace(
        name=name, major=major, minor=minor, multi_processor_count=gpu.processors, warp_size=gpu.warp_size,
        shared_memory_per_block=min(gpu.shared_bytes, 48 * 1024 if gpu.backend == "cuda" else gpu.shared_bytes),
        shared_memory_per_block_optin=gpu.shared_bytes,
    )  # fmt: skip
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.current_device = lambda: 0
    cuda.is_current_stream_capturing = lambda: False
    cuda.get_device_capability = lambda device=None: (major, minor)
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_name = lambda device=None: name
    if gpu.backend == "hip":
        torch.version.hip = "6.4"
    triton.runtime.driver.set_active(Driver(gpu))
    _without_storage()


def _without_storage() -> None:
    """Teaches tensors without storage what they cannot do where there is no GPU, and our launch functions need."""
    fake: Any = fake_tensor.FakeTensor
    fake_tensor.init_gpu_context = lambda device: None  # type: ignore[assignment]
    # Each expert's first row, where the host reads the offsets of a schedule: as if each had one.
    fake.numpy = lambda tensor: np.arange(tensor.numel(), dtype=np.int32).reshape(tuple(tensor.shape))
    fake.__getitem__ = _index
    fake.contiguous = _contiguous
    layer.is_traced = lambda x: False  # they are to be launched, not traced
    multiply = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return multiply(a, b) if out_dtype is None else multiply(a, b).to(out_dtype)

    torch.mm = mm  # type: ignore[assignment]


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """Without the copy, for which PyTorch asks for the tensor's GPU."""
    return tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _index(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """tensor[index] by views, as PyTorch's own indexing switches to the tensor's GPU first."""
    axis = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            tensor = tensor.select(axis, part)
        else:
            if part is None:
                tensor = tensor.unsqueeze(axis)
            else:
                tensor = torch.ops.aten.slice.Tensor(tensor, axis, part.start, part.stop, part.step or 1)
            axis += 1
    return tensor
