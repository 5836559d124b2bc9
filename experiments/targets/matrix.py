"""The portability matrix: what each target would launch, recorded and compiled in processes of their own."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from tritonmoe_bench import ROOT

from .. import checkout
from ..implementation import registry
from ..table import columns, store
from ..table.provenance import commit, installed, now_utc
from . import others
from .gpus import TARGETS

RESULTS = ROOT / "results"
COMPILE_LIMIT_S = 300
Kernels = Sequence[tuple[str, str]]
"""Each a module and a name."""


def record(target: str, brief: bool, systems: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The launches of one target by our pipelines, or by the systems. Raises NotHere for a system that cannot run here,
    RuntimeError, with what the process said, if that fails."""
    command = [*checkout.program("experiments.targets.record"), target, *(["--brief"] if brief else [])]
    command += ["--systems", *systems] if systems else []
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                          env=checkout.compiler_environment(TRITON_DISABLE_LINE_INFO="1"))  # fmt: skip
    if done.returncode == others.NOT_HERE:
        raise others.NotHere(done.stderr.splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"recording the launches of {target} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compile_all(
    launches: Iterable[dict[str, Any]], jobs: int, as_launched: Kernels | None = None, folders: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """A row of `columns.PORTABILITY_COLUMNS` for each launch, in their order, by as many workers at a time.

    as_launched: the kernels of all that this machine will launch. Then each launch is compiled as when it is done, and
    finds its kernel in Triton's cache if its process has called `keys_in_order` of ahead.py with the same.
    folders: where kernels of others lie.
    """
    todo: SimpleQueue[tuple[int, dict[str, Any]]] = SimpleQueue()
    for task in enumerate(launches):
        todo.put(task)
    rows: dict[int, dict[str, Any]] = {}

    def work() -> None:
        worker = Worker(as_launched, folders)
        try:
            while True:
                index, launch = todo.get_nowait()
                rows[index] = describe(launch) | worker.compile(launch)
        except Empty:
            return
        finally:
            worker.close()

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work) for _ in range(jobs)]:
            done.result()
    return [rows[index] for index in sorted(rows)]


class Worker:
    """A compiling process. One that dies or hangs costs the kernel that it was at, and another takes its place."""

    def __init__(self, as_launched: Kernels | None = None, folders: Sequence[Path] = ()) -> None:
        if as_launched is None:
            # Without the lines of the source in what is compiled, which take a tenth of the time.
            self.program = checkout.program("experiments.targets.others" if folders else "experiments.targets.compile")
            self.program += map(str, folders)
            self.environment = checkout.compiler_environment(TRITON_DISABLE_LINE_INFO="1")
        else:
            self.program = [*checkout.program("experiments.targets.ahead"), json.dumps(as_launched)]
            self.environment = checkout.compiler_environment()
        self.process: subprocess.Popen | None = None
        self.said: IO[str] | None = None

    def compile(self, launch: dict[str, Any]) -> dict[str, Any]:
        """Status, reason and resources of the kernel."""
        if self.process is None:
            self.said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (it lives as long as the process)
            self.process = subprocess.Popen(
                self.program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, encoding="utf-8",
                errors="replace", bufsize=1, env=self.environment,
            )  # fmt: skip
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(launch) + "\n")
            stdin.flush()
            line = stdout.readline() if select.select([stdout], [], [], COMPILE_LIMIT_S)[0] else None
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        reason = f"no end after {COMPILE_LIMIT_S} s" if line is None else "the compiler aborted"
        return {"status": "does_not_compile", "reason": f"{reason}: {self.close()}"[:300]}

    def close(self) -> str:
        """Ends the process; returns the last that it said."""
        if self.process is None or self.said is None:
            return ""
        self.process.kill()
        self.process.communicate()
        self.said.seek(0)
        lines = self.said.read().strip().splitlines()
        self.said.close()
        self.process = self.said = None
        return lines[-1] if lines else "it said nothing"


def describe(launch: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that say what was launched."""
    constants = [
        f"{name}={value:d}" if isinstance(value, bool) else f"{name}={value}"
        for name, (kind, value, _) in launch["arguments"].items()
        if kind == "constexpr" and name.isupper()
    ]
    options = [f"{name}={launch['options'][name]}" for name in ("num_warps", "num_stages")]
    return {
        "kernel": launch["kernel"].strip("_").removesuffix("_kernel"), "config": " ".join(constants + options),
        "dtype": launch["dtype"], "target": launch["target"], "implementations": "+".join(launch["implementations"]),
        "case": launch["case"],
    }  # fmt: skip


def matrix(targets: Sequence[str], *, brief: bool, jobs: int, systems: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of the targets: every launch there of every pipeline of ours, or of the systems, which are of others;
    brief: few for each configuration."""
    with ThreadPoolExecutor(jobs) as pool:
        launches = list(pool.map(lambda target: record(target, brief, systems), targets))
    folders = [folder for name in systems for folder in registry.get(name).search_path()]
    return compile_all([launch for each in launches for launch in each], jobs, folders=list(dict.fromkeys(folders)))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The CSV, and its provenance as JSON beside it."""
    store.write_rows(path, rows, columns.PORTABILITY_COLUMNS)
    git_commit, git_dirty = commit()
    record = {
        "timestamp_utc": now_utc(), "git_commit": git_commit, "git_dirty": git_dirty, "triton": installed("triton"),
        "torch": installed("torch"), "shared_bytes": {name: gpu.shared_bytes for name, gpu in TARGETS.items()},
        "labels": {name: gpu.label for name, gpu in TARGETS.items()},
    }  # fmt: skip
    store.write_whole(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A line a target, and one for each failure."""
    lines = []
    for target in dict.fromkeys(row["target"] for row in rows):
        here = [row for row in rows if row["target"] == target]
        counts = Counter(row["status"] for row in here)
        kernels = len({row["kernel"] for row in here})
        statuses = ", ".join(f"{counts[status]} {status}" for status in columns.PORTABILITY_STATUSES if counts[status])
        lines.append(f"{target:8} {TARGETS[target].label:12} {kernels} kernels, {len(here)} configurations: {statuses}")
    lines += [
        f"  {row['status']}: {row['kernel']} on {row['target']} ({row['reason']}): {row['config']}, {row['dtype']}, "
        f"as for {row['case']} by {row['implementations']}"
        for row in rows
        if row["status"] != "ok"
    ]
    return "\n".join(lines)
