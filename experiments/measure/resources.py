"""Counts what one forward takes beside time: workspace, kernel launches and host synchronisations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def workspace_bytes(call: Callable[[], object]) -> int:
    """Device memory that one forward takes beyond what lives before it, output included, in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def count_launches(call: Callable[[], object]) -> tuple[int, int]:
    """(kernels that one forward runs, memory copies and fills left out; times that the host waits for the GPU)."""
    call()
    torch.cuda.synchronize()
    kernels, waits = _profiled(call)
    return kernels, waits - _waits_of_profiling()


@functools.cache
def _waits_of_profiling() -> int:
    """Waits that the profiler itself, and the one at the end of the region, put into every count."""
    return _profiled(lambda: None)[1]


def _profiled(call: Callable[[], object]) -> tuple[int, int]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    names = [(event.device_type == torch.autograd.DeviceType.CUDA, event.name) for event in profiler.events() or []]
    kernels = sum(on_gpu and not name.startswith(("Memcpy", "Memset", "Activity Buffer")) for on_gpu, name in names)
    waiting = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
    return kernels, sum(not on_gpu and name in waiting for on_gpu, name in names)
