"""A run: one sweep on one kind of GPU and software, its CSV and its provenance, found again after a cut.

Several processes may write to one run, the jobs of a multirun above all: whatever they read or write of it is under a
lock (experiments/table/locks.py) in results/<device>/.locks.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from ..workload.case import Case
from ..workload.config import PlanError
from . import store
from .columns import COLUMNS, ENVIRONMENT_COLUMNS, KEYS, MODE_COLUMN, failed
from .locks import locked, take
from .provenance import now_utc

SAME_RUN = ("device", "driver", "cuda", "torch", "triton", "python")
"""What must be equal for a run to go on; the card may be another one of the kind, the commit may move on."""

SAME_RESULT = ("case_hash", "implementation", "implementation_version", "revision", "method_revision", "config")
"""What must be equal for a row to answer for a measurement: it is not taken again."""

Forward = tuple[str, str, str]
"""(case_hash, implementation, mode): what the rows of one measurement have in common."""


@dataclass
class Run:
    """The rows of one run, in results/<device>/<study>.csv, with their provenance beside it as JSON."""

    path: Path
    study: str
    kind: str
    environment: dict[str, Any]
    record: dict[str, Any]
    stream_us: dict[str, float] = field(default_factory=dict)
    _held: list[IO[str] | None] = field(default_factory=list, repr=False)
    _held_forwards: set[Forward] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls, results: Path, study: str, kind: str, environment: dict[str, Any], *, new: bool = False, command: str = ""
    ) -> Run:
        """Goes on with the study's current run if it is of the same GPU and software, else archives it.

        command: names the command line that this process is a job of; its jobs share one run, `new` or not. Raises
        PlanError where that cannot be: jobs of one command on different software, or a run that others still write to;
        schema.Damaged for files that are none of a run.
        """
        path = results / environment["device"] / f"{study}.csv"
        with locked(_lock(path, "rows")):
            record = _read_record(path)
            joins = record is not None and bool(command) and record.get("command") == command
            if not path.exists() and not joins and not _written_to(path):
                record = None  # its rows have been taken away
            unlike = [name for name in SAME_RUN if record is not None and record.get(name) != environment[name]]
            if joins and record is not None and unlike:
                listed = ", ".join(f"{name} {record.get(name)} and {environment[name]}" for name in unlike)
                raise PlanError(f"the jobs of this sweep differ in {listed}: a run has one of each")
            if record is None or unlike or (new and not joins):
                _archive(path, record)
                stamp = now_utc()
                record = {
                    "run_id": f"{stamp.replace('-', '').replace(':', '')}-{secrets.token_hex(2)}", "study": study,
                    **environment, "started_utc": stamp, "finished_utc": "", "matrix_tflops": {}, "processes": [],
                }  # fmt: skip
            store.header(path)  # a file to which no row can be added is told before anything is measured
            run = cls(path, study, kind, environment, record | {"command": command})
            run._held.append(take(_lock(path, "writers"), shared=True))
            run._write_record()
        return run

    @property
    def key(self) -> tuple[str, ...]:
        return KEYS[self.kind]

    def claim(self, cases: Iterable[Case], implementations: list[str]) -> None:
        """Waits while another process runs the same points of this study: it then finds their rows, not the points."""
        points = "\n".join([*sorted(case.case_hash for case in cases), *sorted(implementations)])
        path = _lock(self.path, hashlib.sha256(points.encode()).hexdigest()[:16])
        held = take(path, wait=False)
        if held is None:
            print("waiting for another process that runs the same points", flush=True)
            held = take(path)
        self._held.append(held)

    def failed(self, mode: str, status: str, reason: str) -> dict[str, Any]:
        """The columns of a point that gave no result."""
        return failed(self.kind, mode, status, reason)

    def done(self, implementation: str, modes: list[str]) -> list[dict[str, Any]]:
        """The columns of `SAME_RESULT` of what this run holds for every mode asked for: one entry for each case,
        more where several versions measured it."""
        with locked(_lock(self.path, "rows")):
            self.record = self._current_record()
            frame = store.read(self.path, self.key)
        if frame.empty:
            return []
        frame = frame[frame["run_id"] == self.record["run_id"]]
        self._recall_limits(frame)
        frame = frame[frame["implementation"] == implementation]
        if self.kind == "traffic":
            frame = frame[frame["stage"] == "total"]  # the last row of a forward: without it others may be lacking
        if frame.empty:
            return []
        frame = frame.reindex(columns=[*SAME_RESULT, MODE_COLUMN[self.kind]])
        frame = frame.fillna(dict.fromkeys(SAME_RESULT, "")).astype(dict.fromkeys(SAME_RESULT, str))
        held = frame.groupby(list(SAME_RESULT))[MODE_COLUMN[self.kind]].agg(set)
        return [dict(zip(SAME_RESULT, key)) for key, found in held.items() if found >= set(modes)]

    def put(self, case: Case, rows: list[dict[str, Any]]) -> None:
        """`append` of all rows of a case by one implementation, which take the place of what this run had of it.

        Without that, stages of an older version that the new one does not have would stand beside its own.
        """
        if "stage" in self.key:
            mode = MODE_COLUMN[self.kind]
            new = {(case.case_hash, str(row["implementation"]), str(row[mode])) for row in rows}
            with locked(_lock(self.path, "rows")):
                if self._held_forwards is None:
                    self._held_forwards = _forwards(self.path, self.record["run_id"], mode)
                if new & self._held_forwards:
                    _discard(self.path, self.record["run_id"], mode, new, COLUMNS[self.kind])
                self._held_forwards |= new
        for row in rows:
            self.append(case, row)

    def append(self, case: Case, row: dict[str, Any]) -> None:
        """Completes a worker's row with run, case, limits and provenance, and writes it."""
        columns = COLUMNS[self.kind]
        if self.kind == "layer":
            if row["implementation"] == "stream" and row["status"] == "ok":
                self.stream_us.setdefault(case.case_hash, row["p50_us"])
            row = row | self._limits(case)
        full = {
            "run_id": self.record["run_id"], "study": self.study, **asdict(case), "case_hash": case.case_hash,
            **{name: self.environment[name] for name in ENVIRONMENT_COLUMNS if name in self.environment},
            "timestamp_utc": now_utc(), **row,
        }  # fmt: skip
        with locked(_lock(self.path, "rows")):
            store.append(self.path, {name: value for name, value in full.items() if name in columns}, columns)

    def save(self, **changes: Any) -> None:
        """Writes the provenance. Of lists and dictionaries, what other jobs have put there meanwhile is kept."""
        with locked(_lock(self.path, "rows")):
            kept = self._current_record()
            self.record = kept | {name: _united(kept.get(name), value) for name, value in changes.items()}
            self._write_record()

    def finish(self) -> None:
        """Leaves one row a key in the CSV and the time in the provenance."""
        with locked(_lock(self.path, "rows")):
            if self.path.exists():
                store.compact(self.path, self.key)
        self.save(finished_utc=now_utc())

    def _current_record(self) -> dict[str, Any]:
        record = _read_record(self.path)
        return record if record is not None and record.get("run_id") == self.record["run_id"] else self.record

    def _write_record(self) -> None:
        store.write_whole(self.path.with_suffix(".json"), json.dumps(self.record, indent=1) + "\n")

    def _limits(self, case: Case) -> dict[str, float]:
        stream = self.stream_us.get(case.case_hash)
        if stream is None:
            return {}
        rate = self.record["matrix_tflops"].get(case.dtype)
        return {"stream_us": stream, "limit_us": max(stream, case.flops / rate / 1e6) if rate else stream}

    def _recall_limits(self, frame: pd.DataFrame) -> None:
        if self.kind != "layer":
            return
        rows = frame[(frame["implementation"] == "stream") & (frame["status"] == "ok") & frame["p50_us"].notna()]
        rows = rows.sort_values("launch", ascending=False)  # graph before eager
        for case_hash, p50 in zip(rows["case_hash"], rows["p50_us"]):
            self.stream_us.setdefault(str(case_hash), float(p50))


def _lock(path: Path, name: str) -> Path:
    """Lock file of a CSV: `rows` while it or its record is read or written, `writers` held shared by all who write."""
    return path.parent / ".locks" / f"{path.stem}-{name}.lock"


def _read_record(path: Path) -> dict[str, Any] | None:
    notes = path.with_suffix(".json")
    return store.read_json(notes) if notes.exists() else None


def _written_to(path: Path) -> bool:
    """Whether any process has the run open."""
    alone = take(_lock(path, "writers"), wait=False)
    if alone is not None:
        alone.close()
    return alone is None


def _archive(path: Path, record: dict[str, Any] | None) -> None:
    """Puts a run out of the way of a new one. Raises PlanError if a process still writes to it."""
    if _written_to(path):
        raise PlanError(f"another sweep is writing to {path}: wait for its end, or give results=... another folder")
    if not path.exists():
        return
    archived = path.parent / "archive" / f"{path.stem}-{(record or {}).get('run_id', now_utc().replace(':', ''))}"
    archived.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            shutil.move(file, archived.with_suffix(file.suffix))


def _forward(row: dict[str, Any], mode: str) -> Forward:
    return row["case_hash"], row["implementation"], row[mode]


def _forwards(path: Path, run_id: str, mode: str) -> set[Forward]:
    """(case_hash, implementation, mode) of every row of a run."""
    return {_forward(row, mode) for row in store.rows(path) if row["run_id"] == run_id}


def _discard(path: Path, run_id: str, mode: str, forwards: set[Forward], columns: tuple[str, ...]) -> None:
    """Rewrites a CSV without the rows of these forwards of a run."""
    kept = [row for row in store.rows(path) if row["run_id"] != run_id or _forward(row, mode) not in forwards]
    store.rewrite(path, kept, columns)


def _united(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | new
    if isinstance(old, list) and isinstance(new, list):
        return old + [item for item in new if item not in old]
    return new
