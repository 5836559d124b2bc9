"""A run: one sweep on one kind of GPU and software, its CSV and its provenance, found again after a cut."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import schema
from .case import Case
from .provenance import now_utc

SAME_RUN = ("device", "driver", "cuda", "torch", "triton", "python")
"""What must be equal for a run to go on; the card may be another one of the kind, the commit may move on."""


@dataclass
class Run:
    """The rows of one run, in results/<device>/<study>.csv, with their provenance beside it as JSON."""

    path: Path
    study: str
    kind: str
    environment: dict[str, Any]
    record: dict[str, Any]
    stream_us: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, results: Path, study: str, kind: str, environment: dict[str, Any], *, new: bool = False) -> Run:
        """Goes on with the study's current run if it is of the same GPU and software, else archives it."""
        folder = results / environment["device"]
        path = folder / f"{study}.csv"
        notes = path.with_suffix(".json")
        record = json.loads(notes.read_text()) if notes.exists() and path.exists() else None
        if record is not None and not new and all(record[name] == environment[name] for name in SAME_RUN):
            run = cls(path, study, kind, environment, record)
            run._recall_limits()
            return run
        if path.exists():
            archived = folder / "archive" / f"{study}-{(record or {}).get('run_id', now_utc().replace(':', ''))}"
            archived.parent.mkdir(parents=True, exist_ok=True)
            for file in (path, notes):
                if file.exists():
                    shutil.move(file, archived.with_suffix(file.suffix))
        stamp = now_utc()
        record = {
            "run_id": f"{stamp.replace('-', '').replace(':', '')}-{secrets.token_hex(2)}", "study": study,
            **environment, "started_utc": stamp, "finished_utc": "", "matrix_tflops": {}, "processes": [],
        }  # fmt: skip
        run = cls(path, study, kind, environment, record)
        run.save()
        return run

    @property
    def key(self) -> tuple[str, ...]:
        return schema.KEYS[self.kind]

    def failed(self, mode: str, status: str, reason: str) -> dict[str, Any]:
        """The columns of a point that gave no result."""
        return schema.failed(self.kind, mode, status, reason)

    def done(self, implementation: str, modes: list[str]) -> list[tuple[str, str, str]]:
        """(case_hash, version, code_hash) of the cases that this run holds for every mode asked for."""
        frame = schema.read(self.path, self.key)
        if frame.empty:
            return []
        frame = frame[(frame["run_id"] == self.record["run_id"]) & (frame["implementation"] == implementation)]
        frame = frame.fillna({"implementation_version": "", "code_hash": ""})
        keys = ["case_hash", "implementation_version", "code_hash"]
        held = frame.groupby(keys)[schema.MODE_COLUMN[self.kind]].agg(set) if len(frame) else {}
        return [(str(a), str(b), str(c)) for (a, b, c), found in held.items() if found >= set(modes)]

    def append(self, case: Case, row: dict[str, Any]) -> None:
        """Completes a worker's row with run, case, limits and provenance, and writes it."""
        columns = schema.COLUMNS[self.kind]
        if self.kind == "layer":
            if row["implementation"] == "stream" and row["status"] == "ok":
                self.stream_us.setdefault(case.case_hash, row["p50_us"])
            row = row | self._limits(case)
        full = {
            "run_id": self.record["run_id"], "study": self.study, **asdict(case), "case_hash": case.case_hash,
            **{name: self.environment[name] for name in schema.ENVIRONMENT_COLUMNS if name in self.environment},
            "timestamp_utc": now_utc(), **row,
        }  # fmt: skip
        schema.append(self.path, {name: value for name, value in full.items() if name in columns}, columns)

    def save(self, **changes: Any) -> None:
        """Writes the provenance."""
        self.record |= changes
        notes = self.path.with_suffix(".json")
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(self.record, indent=1) + "\n")

    def finish(self) -> None:
        """Leaves one row a key in the CSV and the time in the provenance."""
        if self.path.exists():
            schema.compact(self.path, self.key)
        self.save(finished_utc=now_utc())

    def _limits(self, case: Case) -> dict[str, float]:
        stream = self.stream_us.get(case.case_hash)
        if stream is None:
            return {}
        rate = self.record["matrix_tflops"].get(case.dtype)
        return {"stream_us": stream, "limit_us": max(stream, case.flops / rate / 1e6) if rate else stream}

    def _recall_limits(self) -> None:
        frame = schema.read(self.path, self.key)
        if frame.empty or self.kind != "layer":
            return
        rows = frame[(frame["run_id"] == self.record["run_id"]) & (frame["implementation"] == "stream")]
        rows = rows[rows["status"] == "ok"].sort_values("launch", ascending=False)  # graph before eager
        for case_hash, p50 in zip(rows["case_hash"], rows["p50_us"]):
            self.stream_us.setdefault(str(case_hash), float(p50))
