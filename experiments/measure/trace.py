"""`trace`: where the time of a forward goes, kernel by kernel, while it runs in a CUDA graph as it always does.

Kernels of a forward overlap: one may stand ready long before the one ahead of it ends. So a kernel is given the time
from the end of the kernel before it to its own end, and all of them together make the forward. Seen by CUPTI through
PyTorch's profiler, which can change what it sees: `forward_us` is the latency without. Where the sum is another one,
all of it is measured again.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..implementation.contract import Implementation
from ..table import columns
from ..table.columns import FORWARD_KEY, Column
from ..workload.case import Case
from .measurement import Measurement, Rows, by_point

if TYPE_CHECKING:
    from .bench import Bench, Ready

FORWARDS = 8
"""The least of a replay: the first is not counted, as the launch of the graph is before it."""
REPLAYS = 5
APART = 0.05
"""By so much of the latency without tracing may the kernels' times together differ from it."""
TRIES = 3
FLUSHED = "the weights of a forward fit into the L2, and what empties it in between would be traced along"
ON_GPU = ("kernel", "gpu_memset", "gpu_memcpy")
"""Categories of the profiler's events that take the GPU's time."""


class Trace(Measurement):
    """results/<device>/trace.csv: one row per case, system and kernel of its forward."""

    kind = "trace"
    depends = ("workload", "latency", "trace")
    modes = ("graph",)
    key = (*FORWARD_KEY, "place")
    blank = MappingProxyType({"timing_method": "none", "place": "0", "kernel_name": "all"})
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION,
        Column("place", int, "Which kernel of the forward it is, from 1 on; 0 in a row without a result.", least=0),
        Column("kernel_name", str, "Name of the kernel; `all` in a row without a result."),
        columns.LAUNCH, columns.TIMING_METHOD, *columns.STATUS, *columns.LATENCY,
        Column("start_us", float, "From the end of the kernel before to its start, in us; below 0 where it stood by."),
        Column("forward_us", float, "Median latency of the whole forward without tracing, in us.", positive=True),
        columns.ACTIVE_EXPERTS, columns.MAX_EXPERT_LOAD, columns.MIN_BYTES, columns.FLOPS, *columns.ENVIRONMENT,
    )  # fmt: skip

    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """One row per kernel: p50_us is the time from the end of the kernel before it to its own end."""
        if not bench.timed:
            return [self.failed(launch, "unavailable", "needs an NVIDIA GPU") for launch in modes]
        if implementation.host_sync:
            return [self.failed(launch, "unsupported", implementation.host_sync) for launch in modes]
        if not bench.cold_sets(case):
            return [self.failed(launch, "unsupported", FLUSHED) for launch in modes]
        from .bench import prepare

        rows = trace_forward(prepare(implementation, case, bench), bench)
        return [row | {"launch": launch, "config": implementation.config(case)} for launch in modes for row in rows]

    def seconds(self, results: int, points: int, systems: int, modes: Sequence[str]) -> float:
        """0.3 s more per result: the profiler's start and end, as a rule once."""
        return super().seconds(results, points, systems, modes) + 0.3 * results

    def closing_table(self, rows: pd.DataFrame) -> str:
        timed = rows[rows["p50_us"].notna()] if len(rows) else rows
        if timed.empty:
            return ""
        words = timed["kernel_name"] + timed["p50_us"].map(" {:.1f}".format)
        forwards = timed.assign(words=words).sort_values("place", kind="stable")
        joined = forwards.groupby(["case_hash", "implementation"])["words"].agg(", ".join)
        first = timed.drop_duplicates(["case_hash", "implementation"])
        told = first.assign(kernels=[joined[key] for key in zip(first["case_hash"], first["implementation"])])
        kernels = by_point(told, "kernels", also=["implementation"], columns="launch").stack()
        lines = [f"{' '.join(map(str, key))}: {value}" for key, value in zip(kernels.index, kernels)]
        return "\n".join([" ".join(map(str, kernels.index.names)) + ": kernels, us each", *lines])


@dataclass(frozen=True)
class Run:
    """A kernel that ran, or a copy or a fill: start and end in us on the GPU's clock."""

    name: str
    start: float
    end: float


def trace_forward(ready: Ready, bench: Bench) -> Rows:
    """A row per kernel of the forward. Raises IncorrectOutput for a wrong output and ValueError for an odd trace."""
    return nearest(lambda: _traced(ready, bench))


def nearest(measure: Callable[[], Rows]) -> Rows:
    """The rows of a forward, measured again, `TRIES` times in all, as long as they are more than `APART` from the
    latency without tracing; then the nearest."""
    tried: list[Rows] = []
    while len(tried) < TRIES:
        tried.append(measure())
        if _distance(tried[-1]) <= APART:
            return tried[-1]
    return min(tried, key=_distance)


def _distance(rows: Rows) -> float:
    return abs(beyond(sum(row["p50_us"] for row in rows), rows[0]["forward_us"]))


def beyond(kernels_us: float, forward_us: float) -> float:
    """How far the kernels' times together are beyond the latency of the forward without tracing, as a share of it."""
    return kernels_us / forward_us - 1


def _traced(ready: Ready, bench: Bench) -> Rows:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from .timing import time_calls

    with torch.inference_mode():
        plain = time_calls(ready.calls, "graph", bench.settings, **ready.checks)
        calls = ready.calls * math.ceil(FORWARDS / len(ready.forwards))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(REPLAYS):
                graph.replay()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        runs = runs_of(json.loads(path.read_text(encoding="utf-8")))
    return [row | {"forward_us": plain.p50_us} for row in rows_of(runs, REPLAYS, len(calls))]


def runs_of(trace: dict[str, Any]) -> list[Run]:
    """What ran on the GPU, in the order in which it ended; trace: the profiler's, in Chrome's format."""
    events = [event for event in trace["traceEvents"] if event.get("cat") in ON_GPU]
    runs = [Run(short_name(event["name"]), event["ts"], event["ts"] + event["dur"]) for event in events]
    return sorted(runs, key=lambda run: run.end)


def short_name(name: str) -> str:
    """`_top_k_kernel` and `moe_sum_kernel` of what the profiler calls it: no namespace, no template, no arguments."""
    plain = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain)[0].split("::")[-1].strip() or name


def rows_of(runs: Sequence[Run], replays: int, forwards: int) -> Rows:
    """A row per kernel of a forward, of so many replays of so many forwards, each replay without its first.

    Raises ValueError if the runs are not those of equal forwards.
    """
    from .timing import quantile

    kernels, rest = divmod(len(runs), replays * forwards)
    if not runs or rest:
        raise ValueError(f"the profiler saw {len(runs)} kernels, not as many in each of {replays * forwards} forwards")
    rows = []
    for place in range(kernels):
        ended, started, names = [], [], set()
        for at in range(place, len(runs), kernels):
            names.add(runs[at].name)
            if at // kernels % forwards:
                ended.append(runs[at].end - runs[at - 1].end)
                started.append(runs[at].start - runs[at - 1].end)
        if len(names) > 1:
            raise ValueError(f"the forwards differ: their kernel {place + 1} is {', '.join(sorted(names))}")
        low, middle, high = (quantile(sorted(ended), q) for q in (0.2, 0.5, 0.8))
        rows.append({
            "place": place + 1, "kernel_name": names.pop(), "timing_method": "trace", "status": "ok", "reason": "",
            "p50_us": middle, "p20_us": low, "p80_us": high, "samples": len(ended),
            "start_us": quantile(sorted(started), 0.5),
        })  # fmt: skip
    return rows
