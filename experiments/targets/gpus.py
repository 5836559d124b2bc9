"""The GPUs that every kernel is compiled for, with the limits that the compiler does not check. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One target of Triton's compiler.

    label: GPUs that it stands for; backend, arch, warp_size: Triton's GPUTarget; capability: as torch gives it;
    shared_bytes: shared memory or LDS that one program may take; processors: multiprocessors or compute units.
    """

    label: str
    backend: str
    arch: int | str
    warp_size: int
    capability: tuple[int, int]
    shared_bytes: int
    processors: int


KIB = 1024
TARGETS = {
    "sm_80": Gpu("A100", "cuda", 80, 32, (8, 0), 163 * KIB, 108),
    "sm_90": Gpu("H100/H200", "cuda", 90, 32, (9, 0), 227 * KIB, 132),
    "sm_100": Gpu("B200", "cuda", 100, 32, (10, 0), 227 * KIB, 148),
    "gfx942": Gpu("MI300X", "hip", "gfx942", 64, (9, 4), 64 * KIB, 304),
    "gfx950": Gpu("MI350", "hip", "gfx950", 64, (9, 5), 160 * KIB, 256),
}
"""Shared memory: CUDA C++ Programming Guide, table of technical specifications by compute capability (opt-in, less the
KiB that the system takes); AMD Instinct MI300 and CDNA4 instruction set guides (LDS of a work-group)."""
TENSOR_MEMORY_COLUMNS = 512
"""Of 32-bit words, that one program may take on sm_100."""
