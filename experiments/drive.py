"""Drives a sweep: one worker process after another, rows written as they come, every failure a row."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .case import Case
from .plan import Plan
from .provenance import INTERPRETER
from .run import Run

WORKER = Path(__file__).with_name("worker.py")
START_LIMIT_S = 180
"""A worker that is silent for so long between its points (imports, warm-up) is given up."""


class WorkerLost(Exception):
    """The worker ended or hung. status: ``error`` or ``timeout``; the message says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def drive(plan: Plan, run: Run, timing: dict[str, Any], timeout_s: float, *, force: bool = False) -> None:
    """Runs the plan. Every point yields its rows; a worker that is lost costs one point and is started again."""
    total = len(plan.cases) * len(plan.implementations)
    with tempfile.TemporaryDirectory(prefix="tritonmoe-") as scratch, tqdm(total=total, unit="point", smoothing=0.1,
                                                                           mininterval=1.0) as bar:  # fmt: skip
        for name in plan.implementations:
            bar.set_description(name)
            left = {case.case_hash: case for case in plan.cases}
            done = [] if force else run.done(name, plan.modes)
            while left:
                job = {
                    "implementation": name, "kind": plan.kind, "cases": [asdict(case) for case in left.values()],
                    "modes": plan.modes, "timing": timing, "environment": run.environment,
                    "reference_folder": scratch, "done": done,
                }  # fmt: skip
                _one_worker(job, left, run, timeout_s, bar)
    run.finish()


def _one_worker(job: dict[str, Any], left: dict[str, Case], run: Run, timeout_s: float, bar: tqdm) -> None:
    """Runs one worker over what is left and takes from `left` every case that has its rows."""
    identity = {"implementation": job["implementation"], "implementation_version": "", "code_hash": ""}
    current: list[str] = []
    planned = False
    try:
        for event in _events(job, timeout_s):
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
                for row in event["rows"]:
                    run.append(case, row)
                bar.update()
            elif kind == "rates":
                run.save(matrix_tflops=run.record["matrix_tflops"] | event["matrix_tflops"])
            elif kind == "process":
                run.save(processes=[*run.record["processes"], event["drift"]])
    except WorkerLost as lost:
        # With no case begun, the implementation itself does not start, and no second try would differ.
        for case_hash in current or list(left):
            case = left.pop(case_hash)
            for mode in job["modes"]:
                run.append(case, identity | run.failed(mode, lost.status, str(lost)))
            bar.update()
        if not planned or not current:
            left.clear()


def _events(job: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Events of a worker, up to its `end`. Raises WorkerLost if it ends before, or is silent for too long."""
    reader, writer = os.pipe()
    settings = os.environ | ({"TRITON_INTERPRET": "1"} if job["environment"]["device"] == INTERPRETER else {})
    with tempfile.TemporaryFile("w+") as log, os.fdopen(reader, "rb", buffering=0) as pipe:
        process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            pass_fds=[writer], env=settings,
        )  # fmt: skip
        os.close(writer)
        assert process.stdin is not None
        ended = False
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # a dead worker is told apart below
                process.stdin.write(json.dumps({**job, "pipe": writer}) + "\n")
            pending, limit = b"", float(START_LIMIT_S)
            deadline = time.monotonic() + limit
            while True:
                ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise WorkerLost("timeout", f"no result within {limit:.0f} s; timeout_s=... allows more")
                chunk = pipe.read(1 << 16)
                if not chunk:
                    process.wait()
                    raise WorkerLost("error", f"the process ended with code {process.returncode}: {_last_line(log)}")
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
            if not ended:
                process.kill()
            process.wait()


def _last_line(log) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return lines[-1][:240] if lines else "it printed nothing"
