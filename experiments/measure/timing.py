"""The one timing function. Latency of a forward with cold weights, in a CUDA graph or eager.

Calls are chained: one graph, or one run of eager calls, holds several forwards over different weight sets, so that the
replay is long against its own cost and no forward finds its weights in the L2 cache. Where the weight sets together
are too small for that, the L2 is flushed before every single forward instead. The method stands in the row.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..workload.settings import TimingSettings

Call = Callable[[], object]
Made = TypeVar("Made")
NOTHING = contextlib.nullcontext()
MOST_FORWARDS = 4096
"""The most forwards in a chain: 3 ms of kernels that do nothing. What launches none would never last as long."""


@dataclass(frozen=True)
class Timing:
    """Latency of one forward in us: median, 20th and 80th percentile over `samples` samples, by `method`."""

    p50_us: float
    p20_us: float
    p80_us: float
    samples: int
    method: str


def weight_sets(active_bytes: int, l2_bytes: int, total_bytes: int, settings: TimingSettings, most: int = 32) -> int:
    """How many weight sets make a chain cold: enough that the active bytes of all are `cold_factor` x the L2.

    0 if that takes more than `most`, or more than 40 GB: then the L2 has to be flushed instead.
    """
    needed = max(1, math.ceil(settings.cold_factor * l2_bytes / active_bytes))
    return needed if needed <= most and needed * total_bytes <= 40e9 else 0


def time_calls(
    calls: Sequence[Call],
    launch: str,
    settings: TimingSettings,
    *,
    flush: bool = False,
    verify: Callable[[object], object] | None = None,
    verify_again: Callable[[Call], object] | None = None,
    during: contextlib.AbstractContextManager = NOTHING,
) -> Timing:
    """Latency of one of `calls`, which are the same forward over different weight sets. Runs on the current device.

    launch: ``graph`` or ``eager``. flush: time single forwards, each after a flush of the L2. verify: given the output
    of the first call as the timed launch made it, before anything is timed. verify_again: after the timing, given what
    runs the same launch once more and returns that output. Both raise if it is wrong. during: entered for the timing.
    """
    for call in calls:
        call()
    chained = _captured if launch == "graph" else _repeated
    if flush:
        (run, output), links = chained(calls[:1]), 1
        sample_us = quick_us(run, repeats=3)
    else:
        (run, output), rounds, sample_us = lasting(
            lambda rounds: chained([*calls] * rounds), lambda made: quick_us(made[0], repeats=3),
            settings.min_replay_us, MOST_FORWARDS // len(calls),
        )  # fmt: skip
        links = rounds * len(calls)
    if verify is not None:
        verify(output)
    count = min(settings.samples, max(settings.min_samples, int(settings.budget_ms * 1e3 / max(sample_us, 1.0))))
    with during:
        samples = sorted(sample / links for sample in _samples(run, count, flush))
    if verify_again is not None:
        verify_again(lambda: run() if launch == "eager" else (run(), output)[1])
    return Timing(quantile(samples, 0.5), quantile(samples, 0.2), quantile(samples, 0.8), len(samples),
                  "flush" if flush else "chain")  # fmt: skip


def lasting(
    make: Callable[[int], Made], time_us: Callable[[Made], float], least_us: float, most: int
) -> tuple[Made, int, float]:
    """(what `make` gives of so many rounds, the rounds, its time in us), of as many rounds as last `least_us`, or of
    `most`.

    Each is timed itself: an eager forward may take ten times as long as the same one in a graph. What a replay costs at
    its start and end is a part of the latency of each forward in it, the larger the fewer there are.
    """
    rounds = 1
    while True:
        made = make(rounds)
        took = time_us(made)
        if took >= least_us or rounds >= most:
            return made, rounds, took
        rounds = min(most, max(rounds + 1, math.ceil(1.1 * rounds * least_us / max(took, 1.0))))


def _repeated(links: Sequence[Call]) -> tuple[Call, object]:
    """(what runs the calls eagerly and returns the output of the first, that output)."""

    def run() -> object:
        first = links[0]()
        for call in links[1:]:
            call()
        return first

    return run, run()


def _captured(links: Sequence[Call]) -> tuple[Call, object]:
    """(what replays the calls in a CUDA graph, the output of the first), after one replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, output = _repeated(links)
    graph.replay()
    return graph.replay, output


def quick_us(call: Call, repeats: int = 5) -> float:
    """Median time of `call` in us over a few eager runs after one warm-up: for choices, never for a row."""
    call()
    return quantile(sorted(_samples(call, repeats, flush=False)), 0.5)


def matrix_tflops(dtype: torch.dtype, device: str | torch.device, size: int = 8192) -> float:
    """Rate of a dense square GEMM on random data, in TFLOP/s: the measured roof for arithmetic.

    dtype: 16 bits, or float8_e4m3fn where the GPU multiplies it.
    """
    if dtype == torch.float8_e4m3fn:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        one = torch.ones((), device=device)

        def multiply() -> torch.Tensor:
            return torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)
    else:
        left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

        def multiply() -> torch.Tensor:
            return left @ right

    return 2 * size**3 / quick_us(multiply, repeats=20) / 1e6


def _samples(run: Call, count: int, flush: bool) -> list[float]:
    """Times of `count` runs in us, between events on the stream."""
    scratch = None
    if flush:
        l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        scratch = torch.empty(4 * l2_bytes, dtype=torch.int8, device="cuda")
    pairs = []
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of an eager forward would be timed with it
    try:
        for _ in range(count):
            if scratch is not None:
                scratch.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
    finally:
        if collecting:
            gc.enable()
    return [1e3 * start.elapsed_time(end) for start, end in pairs]


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
