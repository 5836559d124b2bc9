"""Drives a sweep: one worker process after another, rows written as they come, every failure a row."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from .. import checkout
from ..implementation.contract import Status
from ..table.provenance import INTERPRETER
from ..table.run import Run
from ..workload.case import Case
from .plan import Plan
from .scratch import scratch

WORKER = "experiments.sweeping.worker"
START_LIMIT_S = 180
"""A worker that is silent for so long between its points (imports, warm-up) is given up."""

END_LIMIT_S = 10
"""How long a worker that has closed its pipe may take to end."""


class WorkerLost(Exception):
    """The worker ended or hung. status: ``error`` or ``timeout``; the message says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Worker:
    """A worker process, which loads what every job needs and then waits for its job."""

    def __init__(self, environment: dict[str, Any]) -> None:
        settings = checkout.program_environment(
            **({"TRITON_INTERPRET": "1"} if environment["device"] == INTERPRETER else {})
        )
        reader, self._writer = os.pipe()
        self.pipe = os.fdopen(reader, "rb", buffering=0)
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed with the worker
        self.process = subprocess.Popen(
            checkout.program(WORKER), stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, encoding="utf-8",
            pass_fds=[self._writer], env=settings,
        )  # fmt: skip
        os.close(self._writer)

    def send(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin:  # a dead worker is told apart by its pipe
            self.process.stdin.write(json.dumps({**job, "pipe": self._writer}) + "\n")

    def ended(self) -> str:
        """How the process ended, which has closed its pipe, and the last thing that it printed."""
        try:
            code = self.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return "the system closed the pipe of its worker"
        return f"the process ended with code {code}: {_last_line(self.log)}"

    def close(self, *, kill: bool) -> None:
        if kill:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.pipe, self.log):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def drive(
    plan: Plan, run: Run, timing: dict[str, Any], timeout_s: float, *, force: bool = False, retry: bool = False
) -> None:
    """Runs the plan. Every point yields its rows; a worker that is lost costs one point and is started again.

    force: measures again what the run holds; retry: what of it has failed. While one worker measures, the next loads
    its packages: that takes a core, and leaves the GPU alone.
    """
    progress = tqdm(total=plan.points, unit="point", smoothing=0.1, mininterval=1.0)
    with ended_by_sigterm(), scratch() as folder, progress as bar:
        jobs = {
            name: {
                "implementation": name, "kind": plan.measurement.kind, "modes": plan.modes, "timing": timing,
                "method_revision": plan.method_revision, "environment": run.environment,
                "cases": [asdict(case) for case in plan.cases_of(name)], "done": [], "reference_folder": str(folder),
            }
            for name in plan.implementations
        }  # fmt: skip
        done = functools.partial(run.done, modes=plan.modes, retry=retry)
        for name in _finished(jobs, {} if force else {name: done(name) for name in jobs}):
            bar.update(len(jobs.pop(name)["cases"]))
        ahead: _Worker | None = None
        try:
            for name, job in jobs.items():
                bar.set_description(name)
                left = {case.case_hash: case for case in plan.cases_of(name)}
                job["done"] = [] if force else done(name)  # another sweep may have gone on meanwhile
                # What stays if the system does not start.
                held = {mode: {entry["case_hash"] for entry in run.done(name, [mode], retry=retry)}
                        for mode in plan.modes}  # fmt: skip
                idle = 0
                while left:
                    job["cases"] = [asdict(case) for case in left.values()]
                    worker = ahead or _Worker(run.environment)
                    ahead = _Worker(run.environment) if name != list(jobs)[-1] else None
                    begun = _one_worker(worker, job, left, held, run, timeout_s, bar, last_try=idle > 0, force=force)
                    idle = 0 if begun else idle + 1
        finally:
            if ahead:
                ahead.close(kill=True)
    run.finish()


def _finished(jobs: dict[str, dict[str, Any]], done: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The systems of which no case is left. One process looks at all that have some row of each case, where a worker
    each would have to start; what it does not come to, the workers look at.

    done: by system, the rows that its run holds.
    """
    of = {
        name: {"cases": job["cases"], "done": done[name]}
        for name, job in jobs.items()
        if name in done and len({entry["case_hash"] for entry in done[name]}) >= len(job["cases"]) > 0
    }
    finished = [name for name, job in jobs.items() if not job["cases"]]
    if of:
        job = {key: value for key, value in next(iter(jobs.values())).items() if key != "implementation"} | {"of": of}
        try:
            for event in _events(_Worker(job["environment"]), job, {}, START_LIMIT_S):
                if event["event"] == "plan" and not event["todo"] and event["implementation"] in of:
                    finished.append(event["implementation"])
        except WorkerLost as lost:
            tqdm.write(f"note: the process that looks at what is there was lost ({lost}); each system looks by itself")
    return finished


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs inside as Ctrl-C does: what it made is removed. Leaves a handler of somebody else's."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one_worker(
    worker: _Worker,
    job: dict[str, Any],
    left: dict[str, Case],
    held: dict[str, set[str]],
    run: Run,
    timeout_s: float,
    bar: tqdm,
    *,
    last_try: bool,
    force: bool,
) -> bool:
    """Runs a worker over what is left and takes from `left` every case that has its rows.

    A worker that is lost with a case begun costs that case. One that ends before any is tried once more, and then
    costs all that are left: the system itself does not start. Then rows that are there stay, if it has not said that
    they are old, and so do they where the system is unavailable now: each sweep asks it again. Returns whether a case
    was begun or none was to do.

    held: by mode, the case_hash of the cases that have a row.
    """
    name = job["implementation"]
    identity = {
        "implementation": name, "implementation_version": "", "method_revision": job["method_revision"],
    }  # fmt: skip
    todo: dict[str, int] = {}
    current: list[str] = []
    kept: list[str] = []
    begun = False
    settled = functools.cache(lambda mode: {entry["case_hash"] for entry in run.done(name, [mode], retry=True)})
    try:
        for event in _events(worker, job, left, timeout_s):
            kind = event.pop("event")
            if kind == "plan":
                todo = event.pop("todo")
                if not force:
                    for cases in held.values():
                        cases -= set(todo)
                identity |= event
                for case_hash in [case_hash for case_hash in left if case_hash not in todo]:
                    del left[case_hash]
                    bar.update()
            elif kind == "start":
                current, begun = [event["case_hash"]], True
                bar.set_postfix_str(str(left[current[0]]))
            elif kind == "rows":
                current = [event["case_hash"]]
                of_case = identity | {"revision": todo.get(current[0], 0)}
                kept += _put(run, left.pop(current[0]), event["rows"], of_case, job["modes"], settled)
                current = []
                bar.update()
            elif kind == "rates":
                run.save(matrix_tflops=run.record["matrix_tflops"] | event["matrix_tflops"])
            elif kind == "process":
                run.save(processes=[*run.record["processes"], event["drift"]])
    except WorkerLost as lost:
        never = not begun and (last_try or lost.status == "timeout")
        if never and any(cases & set(left) for cases in held.values()):
            tqdm.write(f"note: {name} does not start ({lost}); rows of it that are there stay")
        for case_hash in current or (list(left) if never else []):
            case = left.pop(case_hash)
            of_case = identity | {"revision": todo.get(case_hash, 0)}
            costs = [mode for mode in job["modes"] if not (never and case_hash in held[mode])]
            if costs:
                run.put(case, [of_case | run.kind.failed(mode, lost.status, str(lost)) for mode in costs])
            bar.update()
        return begun
    finally:
        if kept:
            tqdm.write(f"note: {name} cannot be measured here ({kept[0]}); rows of it that are there stay: {len(kept)}")
    return True


def _put(
    run: Run,
    case: Case,
    rows: list[dict[str, Any]],
    identity: dict[str, Any],
    modes: list[str],
    settled: Callable[[str], set[str]],
) -> list[str]:
    """Writes the rows of a case, but none that says `unavailable` in the place of one that says more, and returns the
    reasons of those; where they cannot stand in the CSV, writes rows that say so.

    settled: by mode, the case_hash of the cases with such a row.
    """
    left_out: list[dict[str, Any]] = []
    try:
        missing = [row for row in rows if row.get("status") == Status.UNAVAILABLE]
        left_out = [row for row in missing if case.case_hash in settled(row.get(run.kind.mode_column, ""))]
        if len(left_out) < len(rows):
            run.put(case, [row for row in rows if row not in left_out])
    except (ValueError, TypeError, AttributeError) as error:
        reason = f"its rows cannot stand in the CSV: {error}"
        run.put(case, [identity | run.kind.failed(mode, "error", reason) for mode in modes])
    return [str(row.get("reason", "")) for row in left_out]


def _events(worker: _Worker, job: dict[str, Any], left: dict[str, Case], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Events of a worker, up to its `end`. Raises WorkerLost if it ends before, is silent for too long, or if
    something else than our events comes out of its pipe."""
    ended = False
    try:
        worker.send(job)
        pending, limit = b"", float(START_LIMIT_S)
        deadline = time.monotonic() + limit
        while True:
            ready, _, _ = select.select([worker.pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerLost("timeout", f"no result within {limit:.0f} s; timeout_s=... allows more")
            chunk = worker.pipe.read(1 << 16)
            if not chunk:
                raise WorkerLost("error", worker.ended())
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = _event(line, left)
                limit = timeout_s if event["event"] == "start" else float(START_LIMIT_S)
                deadline = time.monotonic() + limit
                if event["event"] == "end":
                    ended = True
                    return
                yield event
    finally:
        worker.close(kill=not ended)


EVENTS: dict[str, dict[str, type]] = {
    "plan": {"todo": dict, "implementation": str}, "start": {"case_hash": str},
    "rows": {"case_hash": str, "rows": list}, "rates": {"matrix_tflops": dict}, "process": {"drift": dict}, "end": {},
}  # fmt: skip
"""What each event of a worker holds at least (experiments/sweeping/worker.py); todo: revisions by case_hash."""


def _event(line: bytes, left: dict[str, Case]) -> dict[str, Any]:
    """The event of a line. Raises WorkerLost if it is none: an adapter can write into any pipe of its process."""
    try:
        event = json.loads(line)
        holds = EVENTS[event["event"]]
        sound = all(isinstance(event[name], kind) for name, kind in holds.items())
        if not sound or event.get("case_hash", next(iter(left), None)) not in {*left, None}:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        said = line[:60].decode(errors="replace")
        raise WorkerLost("error", f"the system wrote into the pipe of its worker: {said!r}") from None
    return event


def _last_line(log) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1][:240] if lines else "it printed nothing"
