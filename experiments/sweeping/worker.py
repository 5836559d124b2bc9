"""One process for one implementation: reads a job from stdin, sends an event a line to the pipe it is given.

A CUDA fault, a crash or an out-of-memory here costs this implementation's rows and nothing else. A job may ask for what
is left of several implementations instead, and measures nothing then: one `plan` each. Events: `plan`,
`start` of a case, `rows` of a case, `rates` (of the matrix units, from `stream` alone), `process` (drift of the
streaming limit, clocks), `end`. Dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import time
from typing import Any

from ..implementation import registry
from ..implementation.contract import Implementation
from ..measure.bench import case_rows, facts, make_bench
from ..measure.measurement import Measurement, measurements
from ..table.limits import LIMIT
from ..table.provenance import sm_clock_mhz
from ..workload.case import Case
from .steady import GpuMemory, steadily

FULL = 0.98
REST_S = 1.0
"""The longest wait for an SM clock that the case before has lowered."""


def main() -> None:
    _die_with_parent()
    # The parent starts this process while another one measures; the job comes when that is done.
    measurements()
    import triton  # noqa: F401

    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    pipe = os.fdopen(job["pipe"], "w", buffering=1, encoding="utf-8")

    def send(event: str, **content: Any) -> None:
        pipe.write(json.dumps({"event": event, **content}) + "\n")

    if "of" in job:
        path = sys.path.copy()
        for name, part in job["of"].items():
            with contextlib.suppress(Exception):  # its own worker says what is wrong with it
                implementation, identity, left = _left(name, job | part)
                send("plan", todo=_revisions(implementation, left), **identity)
            sys.path[:] = path
    else:
        implementation, identity, left = _left(job["implementation"], job)
        send("plan", todo=_revisions(implementation, left), **identity)
        if left:
            _work(implementation, left, identity, job, send)
    send("end")


def _left(system: str, job: dict[str, Any]) -> tuple[Implementation, dict[str, Any], list[Case]]:
    """(the system, whose packages can be imported from now on; what its rows state of it; those of the job's cases that
    have no row of it yet)."""
    implementation = registry.get(system)
    sys.path[:0] = [str(folder) for folder in implementation.search_path()]
    identity = {
        "implementation": implementation.name,
        "implementation_version": implementation.version(),
        "method_revision": job["method_revision"],
    }
    done = [entry for entry in job["done"] if all(entry[name] == str(value) for name, value in identity.items())]
    cases = [Case(**fields) for fields in job["cases"]]
    measurement = measurements()[job["kind"]]
    return implementation, identity, [case for case in cases if not _is_done(measurement, implementation, case, done)]


def _revisions(implementation: Implementation, cases: list[Case]) -> dict[str, int]:
    return {case.case_hash: implementation.revision_of(case) for case in cases}


def _is_done(measurement: Measurement, implementation: Implementation, case: Case, done: list[dict[str, Any]]) -> bool:
    """Whether one of these rows, all of this version, is of this case and its revision, and of the tiles chosen for
    it."""
    own = (case.case_hash, str(implementation.revision_of(case)))
    configs = {entry["config"] for entry in done if (entry["case_hash"], entry["revision"]) == own}
    # A failed row has no config, and of a case that a system does not take it need not know what it would choose.
    planned = measurement.planned_config(implementation, case) if any(configs) else None
    return bool(configs) and (planned is None or planned in configs)


def _work(implementation: Implementation, todo: list[Case], identity: dict, job: dict, send) -> None:
    measurement = measurements()[job["kind"]]
    counted, modes = measurement.ahead(
        implementation.name, todo, job["modes"], job, lambda case: send("start", case_hash=case.case_hash)
    )

    import torch

    from tritonmoe_bench.kernels.target import target_of

    from ..measure.timing import matrix_tflops
    from ..workload.routing import TORCH_DTYPE

    bench = make_bench(job)
    timed = bench.timed and measurement.timed
    memory = GpuMemory() if timed else None
    before = _drift(job, memory) if memory else {}
    if timed and implementation.name == LIMIT:
        rates = {name: matrix_tflops(TORCH_DTYPE[name], "cuda") for name in sorted({case.dtype for case in todo})}
        if any(case.quant == "fp8_block" for case in todo) and target_of(bench.device).has_fp8:
            rates["fp8_block"] = matrix_tflops(torch.float8_e4m3fn, "cuda")
        send("rates", matrix_tflops=rates)
    full = before["clock"] if timed else None
    if measurement.counts_memory:
        memory = None
    again, weights_key = 0, ()
    for case in todo:
        if timed:
            full = _rest(job, full)
        send("start", case_hash=case.case_hash)
        measure = functools.partial(case_rows, measurement.measure, measurement, implementation, case, modes, bench)
        rows: list[dict[str, Any]] = []
        if modes and memory is not None:
            new = case.weights_key != weights_key
            rows, tries = steadily(measure, memory, functools.partial(_is_full, job, full), new)
            again, weights_key = again + (tries > 1 + new), case.weights_key
        elif modes:
            rows = measure()
        rows += counted.get(case.case_hash, [])
        measured = {
            "revision": implementation.revision_of(case), "activations": implementation.activations(case),
            "sm_clock_mhz": _clock(job) if bench.timed else None,
        }  # fmt: skip
        send("rows", case_hash=case.case_hash,
             rows=[{**row, **facts(case), **identity, **measured} for row in rows])  # fmt: skip
    if timed:
        after = _drift(job, memory or GpuMemory())
        send("process", drift={
            "implementation": implementation.name, "device_uuid": job["environment"]["device_uuid"],
            "stream_before_us": before["us"], "stream_after_us": after["us"],
            "sm_clock_before_mhz": before["clock"], "sm_clock_after_mhz": after["clock"], "cases_timed_again": again,
        })  # fmt: skip


def _drift(job: dict, memory: GpuMemory) -> dict[str, Any]:
    """Time in us of the fixed read, and the SM clock in MHz if the driver tells it."""
    return {"us": memory.read_us(), "clock": _clock(job)}


def _rest(job: dict, full: int | None) -> int | None:
    """Waits, `REST_S` at most, until the SM clock is back at `full` MHz. Returns the larger of both.

    A case at the power limit lowers it, and the next one would begin with what is left. A clock below half of `full` is
    that of an idle GPU, and rises with the load. Where the driver tells no clock, there is nothing to wait for.
    """
    deadline = time.monotonic() + REST_S
    clock = _clock(job)
    while clock is not None and full is not None and full / 2 < clock < FULL * full and time.monotonic() < deadline:
        time.sleep(0.01)
        clock = _clock(job)
    return clock if full is None else full if clock is None else max(clock, full)


def _is_full(job: dict, full: int | None) -> bool:
    """Whether the SM clock is as high as it has been, as far as the driver tells it."""
    clock = _clock(job)
    return clock is None or full is None or clock >= FULL * full


def _clock(job: dict) -> int | None:
    return sm_clock_mhz(job["environment"]["device_uuid"])


def _die_with_parent() -> None:
    """Linux: asks for SIGKILL when the parent ends, so that a killed sweep leaves nothing behind on the GPU."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
