"""DRAM and L2 bytes of one forward of any implementation, from the GPU's hardware counters, by Nsight Compute.

One `ncu` for all cases of an implementation, as a start takes seconds; where a case ends the process, another one goes
on with those after it. The three counters fit in one pass, so no kernel runs twice and the caches are as the forward
itself leaves them; more passes are refused. What is not a kernel (copies, fills by the copy engine) is not counted, and
what the last kernels leave dirty in the L2 has not been written to DRAM yet.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import checkout
from ...workload.case import Case
from ..measure import COUNTERS, Traffic
from .export import METRICS, Export, Kernel, by_case, read_export
from .rows import counted_rows

CHILD = "experiments.traffic.counters.child"
MARKER = "_case_marker"
FLAGS = (
    "--profile-from-start", "off", "--replay-mode", "kernel", "--clock-control", "none", "--cache-control", "none",
    "--metrics", ",".join(METRICS.values()), "--csv", "--page", "raw", "--print-units", "base",
)  # fmt: skip
INSTALLED = ("/usr/local/cuda/bin/ncu", "/usr/local/cuda-*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
POLL_S = 0.1

Rows = list[dict[str, Any]]


def find_ncu() -> str | None:
    """Nsight Compute's command line: on the PATH, in CUDA_HOME, or where CUDA and Nsight Compute install it."""
    on_path = shutil.which("ncu")
    if on_path:
        return on_path
    patterns = [f"{os.environ['CUDA_HOME']}/bin/ncu"] if os.environ.get("CUDA_HOME") else []
    for pattern in (*patterns, *INSTALLED):
        for path in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if os.access(path, os.X_OK):
                return str(path)
    return None


def profile(
    implementation: str, cases: Sequence[Case], job: dict[str, Any], on_start: Callable[[Case], None]
) -> dict[str, Rows]:
    """Rows of every case, by its hash; a case without counts has one row that says why.

    job: the worker's, for device, timing and the folder of references; on_start is called as each case begins.
    """
    rows: dict[str, Rows] = {}
    ncu = find_ncu()
    if ncu is None:
        reason = "Nsight Compute (ncu) is not installed: it comes with the CUDA toolkit; put it on the PATH"
        return {case.case_hash: _no_counts("unavailable", reason) for case in cases}
    left = list(cases)
    while left:
        process = _Process(ncu, implementation, left, job)
        process.run(on_start)
        found = process.rows()
        rows |= {left[index].case_hash: of_case for index, of_case in found.items()}
        left = left[len(found) :]
    return rows


def _no_counts(status: str, reason: str) -> Rows:
    return [Traffic().failed(COUNTERS, status, reason)]


class _Process:
    """One `ncu` over the cases, in order, up to the one that ends it."""

    def __init__(self, ncu: str, implementation: str, cases: Sequence[Case], job: dict[str, Any]) -> None:
        self.cases = cases
        self._ncu = ncu
        self._job = {
            **{name: job[name] for name in ("environment", "timing", "reference_folder")},
            "implementation": implementation, "cases": [asdict(case) for case in cases], "owner": os.getpid(),
        }  # fmt: skip
        self._begun: list[int] = []
        self._ended: dict[int, dict[str, Any]] = {}
        self._text = ""
        self._code = 0

    def run(self, on_start: Callable[[Case], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="counters-", dir=self._job["reference_folder"]) as folder:
            job, progress, log = (Path(folder) / name for name in ("job.json", "progress.jsonl", "ncu.log"))
            job.write_text(json.dumps({**self._job, "progress": str(progress)}), encoding="utf-8")
            progress.touch()
            command = [self._ncu, *FLAGS, "--log-file", str(log), *checkout.program(CHILD), str(job)]
            settings = checkout.program_environment(LC_ALL="C")  # numbers are printed in the locale's way
            with (
                open(Path(folder) / "output", "w+", encoding="utf-8") as output,
                open(progress, encoding="utf-8") as events,
            ):
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=settings
                )
                try:
                    while process.poll() is None:
                        self._take(events, on_start)
                        time.sleep(POLL_S)
                finally:
                    process.kill()
                    self._code = process.wait()
                self._take(events, on_start)
                output.seek(0)
                self._text = "\n".join([log.read_text(encoding="utf-8") if log.exists() else "", output.read()])

    def _take(self, events, on_start: Callable[[Case], None]) -> None:
        for line in events:
            event = json.loads(line)
            if event["event"] == "start":
                self._begun.append(event["index"])
                on_start(self.cases[event["index"]])
            else:
                self._ended[event["index"]] = event["row"]

    def rows(self) -> dict[int, Rows]:
        """By index of the case, those that were begun; all of them if none was."""
        try:
            export = read_export(self._text)
            kernels = by_case(export.kernels, MARKER)
        except ValueError as error:
            return {index: _no_counts("error", str(error)) for index in self._begun or range(len(self.cases))}
        if not self._begun:
            return {index: self._lost(export) for index in range(len(self.cases))}
        return {
            index: self._case_rows(self._ended[index], kernels.get(index, []), export)
            if index in self._ended
            else self._lost(export)
            for index in self._begun
        }

    def _lost(self, export: Export) -> Rows:
        """Rows of a case during which, or before which, the process ended."""
        if export.complaints and not self._begun:
            return _no_counts("unavailable", f"Nsight Compute: {export.complaints[0]}")
        return _no_counts("error", f"the profiled process ended with code {self._code}: {self._last_line()}")

    def _case_rows(self, row: dict[str, Any], kernels: list[Kernel], export: Export) -> Rows:
        if row["status"] != "ok":
            return [row]
        named = {"config": row["config"]}
        if export.passes > 1:
            reason = f"a kernel took {export.passes} passes, after the first of which its caches are warm"
            return [{**_no_counts("error", reason)[0], **named}]
        if not kernels:
            complaint = next(iter(export.complaints), "")
            status = "unavailable" if complaint else "error"
            reason = f"Nsight Compute: {complaint}" if complaint else "Nsight Compute reported no kernel of the forward"
            return [{**_no_counts(status, reason)[0], **named}]
        try:
            return [{**named, **counted} for counted in counted_rows(self._job["implementation"], kernels)]
        except ValueError as error:
            return [{**_no_counts("unavailable", str(error))[0], **named}]

    def _last_line(self) -> str:
        lines = [line.strip() for line in self._text.splitlines() if line.strip() and not line.startswith(("==", '"'))]
        return lines[-1] if lines else "it printed nothing"
