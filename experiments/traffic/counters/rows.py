"""Rows of traffic.csv from the kernels of one forward: a row per stage or kernel, then the whole forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..launches import matched
from ..measure import COUNTERS
from .export import METRICS, Kernel

MOST_LAUNCHES = 40
"""A forward of more launches gets one row for all that share a kernel, rather than one a launch."""


def counted_rows(implementation: str, kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """One row a stage where the pipeline's stages are known, else one a kernel in order of launch; then `total`.

    Raises ValueError if a counter is absent: a sum over the rest would be too small.
    """
    absent = {METRICS[column] for kernel in kernels for column in METRICS if kernel.counts[column] is None}
    if absent:
        raise ValueError(f"this GPU gave no value of {', '.join(sorted(absent))}")
    names = stages(implementation, kernels) or launches(kernels)
    sums: dict[str, Counter[str]] = {}
    for name, kernel in zip(names, kernels):
        sums.setdefault(name, Counter()).update(kernel.counts)
    total = sum(sums.values(), Counter())
    return [
        {"method": COUNTERS, "stage": stage, "tensor": "all", "status": "ok", "reason": "",
         **{column: counts[column] for column in METRICS}}
        for stage, counts in [*sums.items(), ("total", total)]
    ]  # fmt: skip


def stages(implementation: str, kernels: Sequence[Kernel]) -> list[str]:
    """The stage of every kernel of a pipeline of traffic/launches.py; empty for others, or if its launches differ.

    A kernel of PyTorch's belongs to the stage that it prepares: that of the next of the pipeline's own.
    """
    known = matched(implementation, [kernel.name for kernel in kernels])
    if known is None:
        return []
    found, left = [], list(known)
    for kernel in kernels:
        found.append((left or known[-1:])[0].stage)
        if left and kernel.name == left[0].kernel:
            del left[0]
    return found


def launches(kernels: Sequence[Kernel]) -> list[str]:
    """A name for each launch: `02 moe_kernel`, or for a long forward `02 gemm (256 launches)` for all of a kernel."""
    if len(kernels) <= MOST_LAUNCHES:
        return [f"{order:02d} {kernel.name}" for order, kernel in enumerate(kernels, start=1)]
    times = Counter(kernel.name for kernel in kernels)
    order = {name: at for at, name in enumerate(times, start=1)}
    return [f"{order[kernel.name]:02d} {kernel.name} ({times[kernel.name]} launches)" for kernel in kernels]
