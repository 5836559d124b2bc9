"""Drives a sweep: one worker process after another, rows written as they come, every failure a row."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from .. import checkout
from ..table.provenance import INTERPRETER
from ..table.run import Run
from ..workload.case import Case
from .plan import Plan

WORKER = "experiments.sweeping.worker"
START_LIMIT_S = 180
"""A worker that is silent for so long between its points (imports, warm-up) is given up."""


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

    def close(self, *, kill: bool) -> None:
        if kill:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.pipe, self.log):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def drive(plan: Plan, run: Run, timing: dict[str, Any], timeout_s: float, *, force: bool = False) -> None:
    """Runs the plan. Every point yields its rows; a worker that is lost costs one point and is started again.

    While one worker measures, the next loads its packages: that takes a core, and leaves the GPU alone.
    """
    progress = tqdm(total=plan.points, unit="point", smoothing=0.1, mininterval=1.0)
    with tempfile.TemporaryDirectory(prefix="tritonmoe-") as scratch, progress as bar:
        ahead: _Worker | None = None
        try:
            for name in plan.implementations:
                bar.set_description(name)
                left = {case.case_hash: case for case in plan.cases_of(name)}
                done = [] if force else run.done(name, plan.modes)
                while left:
                    job = {
                        "implementation": name, "kind": plan.kind, "cases": [asdict(case) for case in left.values()],
                        "modes": plan.modes, "timing": timing, "environment": run.environment,
                        "reference_folder": scratch, "done": done,
                    }  # fmt: skip
                    worker = ahead or _Worker(run.environment)
                    ahead = _Worker(run.environment) if name != plan.implementations[-1] else None
                    _one_worker(worker, job, left, run, timeout_s, bar)
        finally:
            if ahead:
                ahead.close(kill=True)
    run.finish()


def _one_worker(
    worker: _Worker, job: dict[str, Any], left: dict[str, Case], run: Run, timeout_s: float, bar: tqdm
) -> None:
    """Runs a worker over what is left and takes from `left` every case that has its rows."""
    identity = {
        "implementation": job["implementation"],
        "implementation_version": "",
        "revision": 0,
        "method_revision": "",
    }
    current: list[str] = []
    planned = False
    try:
        for event in _events(worker, job, timeout_s):
            kind = event.pop("event")
            if kind == "plan":
                planned = True
                todo = set(event.pop("todo"))
                identity = event
                for case_hash in [case_hash for case_hash in left if case_hash not in todo]:
                    del left[case_hash]
                    bar.update()
            elif kind == "start":
                current = [event["case_hash"]]
                bar.set_postfix_str(str(left[current[0]]))
            elif kind == "rows":
                case = left.pop(event["case_hash"])
                current = []
                run.put(case, event["rows"])
                bar.update()
            elif kind == "rates":
                run.save(matrix_tflops=run.record["matrix_tflops"] | event["matrix_tflops"])
            elif kind == "process":
                run.save(processes=[*run.record["processes"], event["drift"]])
    except WorkerLost as lost:
        # With no case begun, the implementation itself does not start, and no second try would differ.
        for case_hash in current or list(left):
            case = left.pop(case_hash)
            run.put(case, [identity | run.failed(mode, lost.status, str(lost)) for mode in job["modes"]])
            bar.update()
        if not planned or not current:
            left.clear()


def _events(worker: _Worker, job: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Events of a worker, up to its `end`. Raises WorkerLost if it ends before, or is silent for too long."""
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
                worker.process.wait()
                reason = f"the process ended with code {worker.process.returncode}: {_last_line(worker.log)}"
                raise WorkerLost("error", reason)
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                limit = timeout_s if event["event"] == "start" else float(START_LIMIT_S)
                deadline = time.monotonic() + limit
                if event["event"] == "end":
                    ended = True
                    return
                yield event
    finally:
        worker.close(kill=not ended)


def _last_line(log) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1][:240] if lines else "it printed nothing"
