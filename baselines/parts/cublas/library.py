"""cuBLAS's grouped GEMM by ctypes, out of the libcublas that PyTorch itself has loaded.

Signatures and constants: cublas_api.h and library_types.h of CUDA 12.5 and later. cuBLAS is column-major; the array of
dimensions, leading dimensions and scalars lie in host memory, the arrays of matrix pointers in GPU memory.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

SONAME = "libcublas.so.{major}"
FUNCTION = "cublasGemmGroupedBatchedEx"
OP_N, OP_T = 0, 1
COMPUTE_32F = 68
CUDA_DTYPE = {torch.float16: 2, torch.bfloat16: 14}
WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper in the description of cublasSetWorkspace."""

_int, _pointer = ctypes.c_int, ctypes.c_void_p
SIGNATURES: dict[str, list] = {
    "cublasCreate_v2": [ctypes.POINTER(_pointer)],
    "cublasSetStream_v2": [_pointer, _pointer],
    "cublasSetWorkspace_v2": [_pointer, _pointer, ctypes.c_size_t],
    "cublasGetProperty": [_int, ctypes.POINTER(_int)],
    FUNCTION: [
        _pointer,  # handle
        *[_pointer] * 5,  # transa, transb, m, n, k
        _pointer,  # alpha
        *[_pointer, _int, _pointer],  # A, its type, lda
        *[_pointer, _int, _pointer],  # B
        _pointer,  # beta
        *[_pointer, _int, _pointer],  # C
        *[_int, _pointer],  # group_count, group_size
        _int,  # compute type
    ],
}


class CublasError(RuntimeError):
    """A cuBLAS function returned another status than success."""


@functools.cache
def load() -> Any:
    """PyTorch's libcublas. Raises OSError if it is not there, AttributeError if it is too old for grouped GEMM."""
    major = (torch.version.cuda or "").partition(".")[0]
    if not major:
        raise OSError(f"torch {torch.__version__} was built without CUDA")
    # PyTorch loads it itself: the name finds that one, whatever else lies on the search path.
    return declared(ctypes.CDLL(SONAME.format(major=major)))


def declared(library: Any) -> Any:
    """The library with the signatures that are used here."""
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _int
    return library


def version(library: Any) -> str:
    """As in ``13.1.0``."""
    parts = []
    for kind in range(3):
        value = _int()
        _check(library.cublasGetProperty(kind, ctypes.byref(value)), "cublasGetProperty")
        parts.append(str(value.value))
    return ".".join(parts)


class Handle:
    """A cuBLAS handle of our own with its workspace, on PyTorch's current stream."""

    def __init__(self, library: Any, device: torch.device) -> None:
        self._library, self._device = library, device
        self._handle = _pointer()
        _check(library.cublasCreate_v2(ctypes.byref(self._handle)), "cublasCreate")
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._stream: int | None = None

    def grouped_gemm(self, *arguments: Any) -> None:
        """`FUNCTION` with everything after the handle. Raises CublasError."""
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        if stream != self._stream:
            # A new stream takes the workspace away, so it is given once more.
            _check(self._library.cublasSetStream_v2(self._handle, stream), "cublasSetStream")
            space = self._workspace
            _check(self._library.cublasSetWorkspace_v2(self._handle, space.data_ptr(), space.numel()),
                   "cublasSetWorkspace")  # fmt: skip
            self._stream = stream
        _check(getattr(self._library, FUNCTION)(self._handle, *arguments), FUNCTION)


def _check(status: int, name: str) -> None:
    if status:
        raise CublasError(f"{name} returned status {status} of cublasStatus_t")
