"""Which rows of a study to read: those of the newest run, and of several kinds of software the one that is complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from . import store
from .card_speed import with_cards
from .kind import Kind
from .limits import with_limits

OTHER_SOFTWARE = "with-"
"""How the folders begin, under that of the device, whose runs are of other software than the first one there."""


def runs(home: Path) -> list[Path]:
    """The CSVs of a study on one device: `home`, and those of other software."""
    return [path for path in (home, *sorted(home.parent.glob(f"{OTHER_SOFTWARE}*/{home.name}"))) if path.exists()]


def newest(home: Path) -> Path:
    """Of the CSVs of a study on one device, each of other software, the one to read; `home` where there is no other.

    That is the newest of those that a sweep has finished and that hold the most points (a case and a system).
    """
    found = runs(home)
    if len(found) < 2:
        return (found or [home])[0]
    frames = {path: current_run(store.read(path, ())) for path in found}
    points = {
        path: len(frame[["case_hash", "implementation"]].drop_duplicates())
        for path, frame in frames.items()
        if len(frame)
    }
    finished = [path for path in points if (read_record(path) or {}).get("finished_utc")] or list(points) or [home]
    most = max(points.get(path, 0) for path in finished)
    complete = [path for path in finished if points.get(path, 0) == most]
    return max(complete, key=lambda path: str(frames[path]["timestamp_utc"].max()))


def read_run(path: Path, kind: Kind) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(rows of the newest run of a CSV with their limits, its provenance, empty if the JSON is of another run)."""
    rows = current_run(store.read(path, kind.key))
    record = read_record(path) or {}
    if rows.empty or record.get("run_id") != rows["run_id"].iloc[0]:
        return limited(rows, kind, {}), {}
    return limited(rows, kind, record), record


def current_run(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the run with the newest row: runs are never mixed."""
    if frame.empty:
        return frame
    newest = frame.sort_values(["timestamp_utc", "run_id"])["run_id"].iloc[-1]
    return frame[frame["run_id"] == newest].reset_index(drop=True)


def limited(rows: pd.DataFrame, kind: Kind, record: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a run, with the speed of their cards, and with their limits if the kind has some."""
    rows = with_cards(rows, record)
    return with_limits(rows, record.get("matrix_tflops", {})) if kind.limited else rows


def read_record(path: Path) -> dict[str, Any] | None:
    """The provenance beside a CSV, none if there is no JSON. Raises Damaged."""
    notes = path.with_suffix(".json")
    return store.read_json(notes) if notes.exists() else None
