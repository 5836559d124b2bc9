"""A case is timed again if the GPU's memory was slow meanwhile, and the first one over new weights in any case.

On an H200 every read takes a seventh longer at times, for milliseconds or for seconds, with the SM clock as it was: the
same read of 155 µs then takes 177. A case that meets such a time has samples of both kinds, or slow ones alone; the
latter show in a fixed read beside it, but not always. The first case over new weights is off far more often than those
after it (NOTES, Traps), so it is timed until two times agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

BYTES = 1 << 30
SLOW = 1.05
"""A fixed read is slow that takes so many times the least one seen by this process."""
SPREAD = 1.1
"""Samples are of both kinds if their 80th percentile is so many times the 20th."""
AGREED = 1.02
"""Two latencies agree if neither is so many times the other."""
TRIES = 3
REST_S = 2.0
"""The longest wait for the memory to be fast again."""

Rows = list[dict[str, Any]]


class Memory(Protocol):
    """Whether the memory is as fast as it has been."""

    def is_fast(self) -> bool: ...

    def rest(self) -> None: ...


class GpuMemory:
    """Of the current CUDA device, by a read of `BYTES`, which are allocated as long as this lives.

    The read is the same in every process, unless the GPU has changed in between.
    """

    def __init__(self) -> None:
        import torch

        self._words = torch.empty((1, BYTES // 4), dtype=torch.int32, device="cuda").random_()
        self._active = torch.zeros(1, dtype=torch.int32, device="cuda")
        self._least_us = self.read_us()

    def is_fast(self) -> bool:
        us = self.read_us()
        self._least_us = min(us, self._least_us)
        return us <= SLOW * self._least_us

    def rest(self) -> None:
        """Waits, `REST_S` at most, until a read is fast."""
        deadline = time.monotonic() + REST_S
        while not self.is_fast() and time.monotonic() < deadline:
            time.sleep(0.02)

    def read_us(self) -> float:
        """The median time of the read, in us."""
        from tritonmoe_bench.kernels.stream import stream

        from ..measure.timing import quick_us

        return quick_us(lambda: stream(self._words, self._active), repeats=20)


def steadily(
    measure: Callable[[], Rows], memory: Memory, at_full_clock: Callable[[], bool], over_new_weights: bool = False
) -> tuple[Rows, int]:
    """(rows of a case, how often it was timed). The last time stands, and not the fastest.

    at_full_clock: asked after each time; at the power limit the samples spread whatever the memory does.
    over_new_weights: it is the first case over them.
    """
    rows: Rows = []
    for tries in range(1, TRIES + 1):
        memory.rest()
        earlier, rows = rows, measure()
        settled = not over_new_weights or _agree(earlier, rows)
        if memory.is_fast() and settled and not (at_full_clock() and any(map(_spreads, rows))):
            return rows, tries
    return rows, TRIES


def _agree(earlier: Rows, rows: Rows) -> bool:
    """Whether all latencies in a graph are what they were the time before."""
    before, now = ([row["p50_us"] for row in times if _in_graph(row)] for times in (earlier, rows))
    agreed = (1 / AGREED <= new / old <= AGREED for new, old in zip(now, before))
    return not now or (len(now) == len(before) and all(agreed))


def _in_graph(row: dict[str, Any]) -> bool:
    """Whether it is a latency in a graph: those of eager launches vary with the host, and those of a kernel in a trace
    with its neighbours."""
    return row.get("status") == "ok" and row.get("launch") == "graph" and row.get("timing_method") in ("chain", "flush")


def _spreads(row: dict[str, Any]) -> bool:
    """Whether the samples of a row are of two kinds."""
    return _in_graph(row) and bool(row["p80_us"] > SPREAD * row["p20_us"])
