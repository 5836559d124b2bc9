"""One process for one implementation: reads a job from stdin, sends an event a line to the pipe it is given.

A CUDA fault, a crash or an out-of-memory here costs this implementation's rows and nothing else. Events: `plan`,
`start` of a case, `rows` of a case, `rates` (of the matrix units, from `stream` alone), `process` (drift of the
streaming limit, clocks), `end`. Dies with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    runpy.run_path(str(Path(__file__).resolve().parent / "checkout.py"))

from tritonmoe_bench.baselines.contract import Implementation
from tritonmoe_bench.experiments import registry, schema
from tritonmoe_bench.experiments.case import Case
from tritonmoe_bench.experiments.counters_export import METHOD as COUNTERS

if TYPE_CHECKING:
    from tritonmoe_bench.experiments.measure import Bench

DRIFT_BYTES = 1 << 30
REST_S = 1.0
"""The longest wait for an SM clock that the case before has lowered."""


def main() -> None:
    _die_with_parent()
    # The parent starts this process while another one measures; the job comes when that is done.
    from tritonmoe_bench.experiments import measure  # noqa: F401  loads torch and triton

    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    pipe = os.fdopen(job["pipe"], "w", buffering=1)

    def send(event: str, **content: Any) -> None:
        pipe.write(json.dumps({"event": event, **content}) + "\n")

    implementation = registry.get(job["implementation"])
    sys.path[:0] = [str(folder) for folder in implementation.search_path()]
    identity = {
        "implementation": implementation.name,
        "implementation_version": implementation.version(),
        "code_hash": registry.code_hash(implementation),
    }
    done = {tuple(entry) for entry in job["done"]}
    cases = [Case(**fields) for fields in job["cases"]]
    todo = [case for case in cases
            if (case.case_hash, identity["implementation_version"], identity["code_hash"]) not in done]  # fmt: skip
    send("plan", todo=[case.case_hash for case in todo], **identity)
    if todo:
        _work(implementation, todo, identity, job, send)
    send("end")


def _work(implementation: Implementation, todo: list[Case], identity: dict, job: dict, send) -> None:
    counted, modes = {}, job["modes"]
    if COUNTERS in modes:
        counted, modes = _counted(implementation, todo, job, send), [mode for mode in modes if mode != COUNTERS]

    from tritonmoe_bench.experiments import energy, measure
    from tritonmoe_bench.experiments.timing import matrix_tflops
    from tritonmoe_bench.experiments.workload import TORCH_DTYPE

    bench = make_bench(job)
    cuda = bench.timed
    timed = cuda and job["kind"] != "traffic"
    take = {
        "layer": measure.measure_layer, "stages": measure.measure_stages, "traffic": measure.measure_traffic,
        "energy": energy.measure_energy,
    }  # fmt: skip
    before = _drift(job) if timed else {}
    if timed and implementation.name == "stream":
        rates = {name: matrix_tflops(TORCH_DTYPE[name], "cuda") for name in sorted({case.dtype for case in todo})}
        send("rates", matrix_tflops=rates)
    full = before["clock"] if timed else 0.0
    for case in todo:
        if timed:
            full = max(full, _rest(job, full))
        send("start", case_hash=case.case_hash)
        rows = case_rows(take[job["kind"]], job["kind"], implementation, case, modes, bench) if modes else []
        rows += counted.get(case.case_hash, [])
        facts = measure.facts(case)
        clock = _clock(job) if cuda else None
        send("rows", case_hash=case.case_hash,
             rows=[{**row, **facts, **identity, "sm_clock_mhz": clock} for row in rows])  # fmt: skip
    if timed:
        after = _drift(job)
        send("process", drift={
            "implementation": implementation.name,
            "stream_before_us": before["us"], "stream_after_us": after["us"],
            "sm_clock_before_mhz": before["clock"], "sm_clock_after_mhz": after["clock"],
        })  # fmt: skip


def make_bench(job: dict) -> Bench:
    """Device, settings and folder of references of a job; without a GPU kernels run in Triton's interpreter."""
    import torch

    from tritonmoe_bench.experiments.measure import Bench
    from tritonmoe_bench.experiments.timing import TimingSettings

    cuda = job["environment"]["device_uuid"] != ""
    if not cuda:
        from tritonmoe_bench.experiments import interpreter

        interpreter.install()
    return Bench(
        torch.device("cuda" if cuda else "cpu"),
        TimingSettings(**job["timing"]),
        Path(job["reference_folder"]),
        job["environment"]["l2_bytes"],
    )


def _counted(implementation: Implementation, todo: list[Case], job: dict, send) -> dict[str, list[dict[str, Any]]]:
    """Rows of bytes by hardware counters, by case_hash: all cases in one go, before this process takes GPU memory."""
    from tritonmoe_bench.experiments import counters

    if job["environment"]["device_uuid"] == "":
        row = schema.failed("traffic", COUNTERS, "unavailable", "needs an NVIDIA GPU, and this machine has none")
        return {case.case_hash: [row] for case in todo}
    return counters.profile(implementation.name, todo, job, lambda case: send("start", case_hash=case.case_hash))


def case_rows(
    take, kind: str, implementation: Implementation, case: Case, modes: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """Rows of one case, whatever happens: a failure is a status with its reason."""
    import torch

    from tritonmoe_bench.experiments.measure import IncorrectOutput

    def failed(status: str, reason: str) -> list[dict[str, Any]]:
        return [schema.failed(kind, mode, status, reason) for mode in modes]

    if implementation.needs_gpu and not bench.timed:
        return failed("unavailable", "needs an NVIDIA GPU, and this machine has none")
    check = implementation.check(case)
    if check.status.value != "ok":
        return failed(check.status.value, check.reason)
    try:
        return take(implementation, case, modes, bench)
    except torch.cuda.OutOfMemoryError as error:
        failure = ("oom", str(error))
    except IncorrectOutput as error:
        failure = ("incorrect", str(error))
    except Exception as error:  # the sweep goes on, and the row says what happened
        failure = ("error", f"{type(error).__name__}: {error}")
    rows = failed(*failure)
    if bench.timed:
        bench.release()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()  # a fault of the device itself ends this process here, and the parent says so
    return rows


def _drift(job: dict) -> dict[str, float]:
    """Time in us to read 1 GiB, and the clock: the same in every process unless the GPU has changed in between."""
    import torch

    from tritonmoe_bench.experiments.timing import quick_us
    from tritonmoe_bench.kernels.stream import stream

    words = torch.empty((1, DRIFT_BYTES // 4), dtype=torch.int32, device="cuda").random_()
    active = torch.zeros(1, dtype=torch.int32, device="cuda")
    return {"us": quick_us(lambda: stream(words, active), repeats=20), "clock": _clock(job)}


def _rest(job: dict, full: float) -> float:
    """Waits, `REST_S` at most, until the SM clock is back at `full` MHz. Returns the clock.

    A case at the power limit lowers it, and the next one would begin with what is left. A clock below half of `full` is
    that of an idle GPU, and rises with the load.
    """
    deadline = time.monotonic() + REST_S
    while full / 2 < (clock := _clock(job)) < 0.98 * full and time.monotonic() < deadline:
        time.sleep(0.01)
    return clock


def _clock(job: dict) -> int:
    from tritonmoe_bench.experiments.provenance import sm_clock_mhz

    return sm_clock_mhz(job["environment"]["device_uuid"])


def _die_with_parent() -> None:
    """Linux: asks for SIGKILL when the parent ends, so that a killed sweep leaves nothing behind on the GPU."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
