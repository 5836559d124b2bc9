"""A run: one sweep on one kind of GPU and software, its CSV and its provenance, found again after a cut.

Several processes may write to one run, the jobs of a multirun above all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import secrets
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from ..workload.case import Case
from ..workload.config import PlanError
from . import store
from .columns import ENVIRONMENT, names
from .current import OTHER_SOFTWARE, limited, read_record
from .kind import Kind
from .locks import take
from .provenance import now_utc
from .store import Store

SAME_RUN = ("device", "driver", "cuda", "torch", "triton", "python")
"""What must be equal for a run to go on; the card may be another one of the kind, the commit may move on."""

CONFIG = "config"
SAME_RESULT = ("case_hash", "implementation", "implementation_version", "revision", "method_revision", CONFIG)
"""What must be equal for a row to answer for a measurement: it is not taken again."""

SETTLED = ("ok", "unsupported")
"""Statuses that another try does not change; `retry` measures the others again."""


@dataclass
class Run:
    """The rows of one run, in results/<device>/<study>.csv, with their provenance beside it as JSON."""

    study: str
    kind: Kind
    environment: dict[str, Any]
    record: dict[str, Any]
    rows: Store
    _held: list[IO[str] | None] = field(default_factory=list, repr=False)

    @classmethod
    def open(
        cls, results: Path, study: str, kind: Kind, environment: dict[str, Any], *, new: bool = False, command: str = ""
    ) -> Run:
        """Goes on with the study's current run, if it is of the same software; `new` archives it and starts one.

        A run of other software than the one in the device's folder gets a folder of its own beside it, which is said.
        command: names the command line that this process is a job of; its jobs share one run, `new` or not. Raises
        PlanError where that cannot be: jobs of one command on different software, or a run that others still write to;
        Damaged if the files do not belong to a run.
        """
        home = Store(results / environment["device"] / f"{study}.csv", kind.columns, kind.key)
        with home.alone():
            rows = _for_software(home, environment, command)
            with rows.alone():
                return cls._opened(rows, study, kind, environment, new=new, command=command)

    @classmethod
    def _opened(
        cls, rows: Store, study: str, kind: Kind, environment: dict[str, Any], *, new: bool, command: str
    ) -> Run:
        path = rows.path
        for file in (path, path.with_suffix(".json")):
            if file.is_symlink() and not file.exists():
                raise store.Damaged(f"{file}: a link to {file.readlink()}, which is not there: remove the link")
        record = read_record(path)
        joins = record is not None and bool(command) and record.get("command") == command
        if not path.exists() and not joins and not _written_to(path):
            record = None  # its rows have been taken away
        if record is None or (new and not joins):
            archive(path, record)
            stamp = now_utc()
            record = {
                "run_id": f"{stamp.replace('-', '').replace(':', '')}-{secrets.token_hex(2)}", "study": study,
                **environment, "started_utc": stamp, "finished_utc": "", "matrix_tflops": {}, "processes": [],
            }  # fmt: skip
        store.header(path)  # a file to which no row can be added is told before anything is measured
        run = cls(study, kind, environment, record | {"command": command}, rows)
        run._held.append(take(store.lock(path, "writers"), shared=True))
        run._write_record()
        return run

    @property
    def path(self) -> Path:
        return self.rows.path

    def claim(self, cases: Iterable[Case], implementations: list[str]) -> None:
        """Waits while another process runs the same points of this study: it then finds their rows, not the points."""
        points = "\n".join([*sorted(case.case_hash for case in cases), *sorted(implementations)])
        path = store.lock(self.path, hashlib.sha256(points.encode()).hexdigest()[:16])
        held = take(path, wait=False)
        if held is None:
            print("waiting for another process that runs the same points", flush=True)
            held = take(path)
        self._held.append(held)

    def read(self) -> pd.DataFrame:
        """The rows of this run, with their limits where the kind has some."""
        with self.rows.alone():
            self.record = self._current_record()
            frame = self.rows.read()
        if frame.empty:
            return frame
        return limited(frame[frame["run_id"] == self.record["run_id"]], self.kind, self.record)

    def done(self, implementation: str, modes: Collection[str], *, retry: bool = False) -> list[dict[str, Any]]:
        """The columns of `SAME_RESULT` of what this run holds for every mode asked for: one entry for each case,
        more where several versions measured it. A row without a config (what failed has none, nor has what a model
        counts of most systems) is of whichever the other modes have. retry: without what failed."""
        frame = self.read()
        if frame.empty:
            return []
        frame = self.kind.complete(frame[frame["implementation"] == implementation])
        if retry:
            frame = frame[frame["status"].isin(SETTLED)]
        if frame.empty:
            return []
        mode = self.kind.mode_column
        frame = frame.reindex(columns=[*SAME_RESULT, mode])
        for name in SAME_RESULT:
            frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
        done = []
        others = [name for name in SAME_RESULT if name != CONFIG]
        for same, rows in frame.groupby(others):
            for config in {*rows[CONFIG]} - {""} or {""}:
                if {*rows[mode][rows[CONFIG].isin(["", config])]} >= {*modes}:
                    done.append(dict(zip(others, same)) | {CONFIG: config})
        return done

    def put(self, case: Case, rows: list[dict[str, Any]]) -> None:
        """Completes the rows of a case by one system with run, case and provenance, and writes them.

        They take the place of what this run had of the same measurement: stages of an older version that the new one
        does not have would else stand beside its own. Raises ValueError for a row that no CSV may hold.
        """
        self.rows.replace([self._full(case, row) for row in rows], self.kind.point)

    def append(self, case: Case, row: dict[str, Any]) -> None:
        """`put` of one row beside what is there."""
        self.rows.append([self._full(case, row)])

    def save(self, **changes: Any) -> None:
        """Writes the provenance. Of lists and dictionaries, what other jobs have put there meanwhile is kept."""
        with self.rows.alone():
            kept = self._current_record()
            self.record = kept | {name: _united(kept.get(name), value) for name, value in changes.items()}
            self._write_record()

    def finish(self) -> None:
        """Leaves one row a key in the CSV, with its limits, and the time in the provenance."""
        with self.rows.alone():
            if self.path.exists():
                self.rows.compact(self._limits(self.read()) if self.kind.limited else None)
        self.save(finished_utc=now_utc())

    def _full(self, case: Case, row: dict[str, Any]) -> dict[str, Any]:
        full = {
            "run_id": self.record["run_id"], "study": self.study, **case.cells, "case_hash": case.case_hash,
            **{name: self.environment[name] for name in names(ENVIRONMENT) if name in self.environment},
            "timestamp_utc": now_utc(), **row,
        }  # fmt: skip
        return {name: value for name, value in full.items() if name in names(self.kind.columns)}

    def _limits(self, frame: pd.DataFrame) -> dict[tuple[str, ...], dict[str, float]]:
        """By run_id and key, the limits that are known."""
        if frame.empty:
            return {}
        known = frame[frame["limit_us"].notna()].to_dict("records")
        return {
            tuple(str(row[name]) for name in ("run_id", *self.rows.key)): {
                "stream_us": row["stream_us"], "limit_us": row["limit_us"],
            } for row in known
        }  # fmt: skip

    def _current_record(self) -> dict[str, Any]:
        record = read_record(self.path)
        return record if record is not None and record.get("run_id") == self.record["run_id"] else self.record

    def _write_record(self) -> None:
        store.write_whole(self.path.with_suffix(".json"), json.dumps(self.record, indent=1) + "\n")


def run_path(results: Path, study: str, environment: Mapping[str, Any]) -> Path:
    """The CSV that a run of this software goes to: in a folder of its own where the device's has another software."""
    home = results / environment["device"] / f"{study}.csv"
    return home.parent / _software_folder(environment) / home.name if _unlike(home, environment) else home


def _for_software(home: Store, environment: Mapping[str, Any], command: str) -> Store:
    """The rows of `run_path`, which is said where it is not `home`."""
    unlike = _unlike(home.path, environment)
    if not unlike:
        return home
    record = read_record(home.path) or {}
    listed = ", ".join(f"{name} {record.get(name)} and {environment[name]}" for name in unlike)
    if command and record.get("command") == command:
        raise PlanError(f"the jobs of this sweep differ in {listed}: a run has one of each")
    print(f"note: {home.path} stays as it is, its software is another ({listed}): this run gets a folder of its own")
    path = home.path.parent / _software_folder(environment) / home.path.name
    return Store(path, home.columns, home.key)


def _unlike(home: Path, environment: Mapping[str, Any]) -> list[str]:
    """In what the run of a CSV is not of this software; nothing where there is no run."""
    record = read_record(home) if home.exists() or _written_to(home) else None
    return [name for name in SAME_RUN if record is not None and record.get(name) != environment[name]]


def _software_folder(environment: Mapping[str, Any]) -> str:
    """Such as with-torch2.13.0-triton3.9.0-cuda13.0-driver580.159.04-python3.12.3."""
    told = ("torch", "triton", "cuda", "driver", "python")
    return OTHER_SOFTWARE + "-".join(f"{name}{environment[name]}" for name in told if environment[name])


def _written_to(path: Path) -> bool:
    """Whether any process has the run open."""
    alone = take(store.lock(path, "writers"), wait=False)
    if alone is not None:
        alone.close()
    return alone is None


def archive(path: Path, record: Mapping[str, Any] | None) -> None:
    """Puts a run out of the way of a new one, its rows packed. Raises PlanError if a process still writes to it."""
    if _written_to(path):
        raise PlanError(f"another sweep is writing to {path}: wait for its end, or give results=... another folder")
    if not path.exists():
        return
    run_id = (record or {}).get("run_id", now_utc().replace(":", ""))
    packed = path.parent / "archive" / f"{path.stem}-{run_id}.csv.gz"
    packed.parent.mkdir(parents=True, exist_ok=True)
    with store.writing(packed):
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    if path.with_suffix(".json").exists():
        shutil.move(path.with_suffix(".json"), packed.with_name(f"{path.stem}-{run_id}.json"))


def _united(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | new
    if isinstance(old, list) and isinstance(new, list):
        return old + [item for item in new if item not in old]
    return new
