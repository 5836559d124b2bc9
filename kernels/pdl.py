"""Programmatic dependent launch: lets a kernel start while the one before it drains. NVIDIA, compute capability 9 on.

A kernel that is launched so must call `wait_for_previous` before it touches anything that the kernel before it wrote,
and calls `release_next`, after that, when the next one may take up idle multiprocessors. Before it waits it may read
what older kernels wrote: they were complete when the kernel before it let it start. Elsewhere PDL is False, and both
are nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from .target import target_of


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    if PDL:
        cuda.gdc_wait()


@triton.jit
def release_next(PDL: tl.constexpr):
    if PDL:
        cuda.gdc_launch_dependents()


def launch_options(device: torch.device) -> dict[str, Any]:
    """Keyword arguments of a launch: the constexpr PDL and, where the device can, the option that goes with it."""
    return {"PDL": True, "launch_pdl": True} if target_of(device).has_dependent_launch else {"PDL": False}
