"""The process that Nsight Compute watches: one implementation, one profiled forward a case, with cold caches.

    ncu --profile-from-start off ... python -m tritonmoe_bench.experiments.traffic.counters.child JOB

JOB is a JSON file that ncu.py writes. Events go to the job's `progress`, one a line: `start` of a case
and its `row`. A case's kernels follow a launch of `_case_marker`, whose grid tells the case.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from ...implementation import registry
from ...implementation.contract import Implementation
from ...measure.bench import Bench, case_rows, make_bench, make_gate
from ...workload.case import Case
from ...workload.routing import activations, draw_routing
from ..measure import COUNTERS, Traffic

FLUSH_FACTOR = 4
"""The buffer that is read to empty the L2, over the size of the L2."""


@triton.jit
def _case_marker(out):
    tl.store(out, tl.program_id(0))


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["owner"],), daemon=True).start()
    implementation = registry.get(job["implementation"])
    sys.path[:0] = [str(folder) for folder in implementation.search_path()]
    bench = make_bench(job)
    with open(job["progress"], "a", buffering=1, encoding="utf-8") as progress:
        for index, fields in enumerate(job["cases"]):
            progress.write(json.dumps({"event": "start", "index": index}) + "\n")
            take = functools.partial(profile_forward, index=index)
            (row,) = case_rows(take, Traffic(), implementation, Case(**fields), [COUNTERS], bench)
            progress.write(json.dumps({"event": "row", "index": index, "row": row}) + "\n")


def profile_forward(
    implementation: Implementation, case: Case, methods: list[str], bench: Bench, *, index: int
) -> list[dict[str, Any]]:
    """Runs the forward to warm it up, and once inside of the profiled range; checks its output before and after.

    Returns the row's own words; its bytes are in Nsight Compute's export. Raises IncorrectOutput.
    """
    x = activations(case, draw_routing(case), bench.device)
    weights = bench.weights(case, 1)[0]
    forward = implementation.build(case, weights)
    gate = make_gate(implementation, case, x, [weights], bench) if implementation.computes_layer else None
    with torch.inference_mode():
        y = forward(x)
        if gate is not None:
            gate.check(y)
        forward(x)
        with profiled(bench, index):
            forward(x)
        if gate is not None:
            gate.check_again(lambda: forward(x))
    return [{"method": methods[0], "status": "ok", "reason": "", "config": implementation.config(case)}]


@contextlib.contextmanager
def profiled(bench: Bench, index: int) -> Iterator[None]:
    """The range whose kernels are counted. Without a GPU there is none to count."""
    if not bench.timed:
        yield
        return
    marked = torch.zeros(1, dtype=torch.int32, device=bench.device)
    _case_marker[(1,)](marked)  # compiled before the range
    _empty_l2(bench)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    try:
        _case_marker[(index + 1,)](marked)
        yield
        torch.cuda.synchronize()
    finally:
        torch.cuda.profiler.stop()


def _empty_l2(bench: Bench) -> None:
    """Leaves other lines in the L2, and clean ones: what is dirty before the range would be written back within."""
    scratch = torch.zeros(FLUSH_FACTOR * bench.l2_bytes // 8, dtype=torch.int64, device=bench.device)
    for _ in range(2):
        scratch.sum()


def _end_with(owner: int) -> None:
    """Ends this process when the one that wants its counts is gone: Nsight Compute in between does not tell."""
    while True:
        time.sleep(1)
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            os._exit(1)


if __name__ == "__main__":
    main()
