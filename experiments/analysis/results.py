"""What the figures read: the current run of each study of one device, and which of its points are missing and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..table import columns, store
from ..table.provenance import INTERPRETER
from . import names
from .compare import KEYS, current_run

DEVICE_FREE = ("traffic",)
"""Studies whose rows do not depend on the device, so that those of the interpreter's folder serve too."""
NOT_DEVICES = ("paper", "reference")


class MissingStudy(Exception):
    """There is no CSV of a study; the message says what makes it."""

    one_line = True


@dataclass(frozen=True)
class Study:
    """The current run of one study: its rows, as `schema.read` gives them, and the provenance beside the CSV."""

    name: str
    path: Path
    rows: pd.DataFrame
    record: dict[str, Any]

    def lacks(self, what: str) -> MissingStudy:
        """The error of a figure that these rows are not enough for; what: as in "rows of fast"."""
        return MissingStudy(f"{self.path} has no {what}: python experiments/sweep.py study={self.name} makes them")

    def require(self, *sides: Collection[str]) -> None:
        """Raises MissingStudy unless each side of a comparison has a row of one of its systems."""
        for side in sides:
            if not self.rows["implementation"].isin(list(side)).any():
                raise self.lacks(f"rows of {' or '.join(side) or 'another system'}")


@dataclass(frozen=True)
class Results:
    """The folder `root`, as the sweeps leave it, seen for one device."""

    root: Path
    device: str

    def path(self, study: str) -> Path:
        """CSV of a study; for counted bytes the interpreter's, where the device has none of its own."""
        path = self.root / self.device / f"{study}.csv"
        return self.root / INTERPRETER / path.name if study in DEVICE_FREE and not path.exists() else path

    def study(self, name: str) -> Study:
        """The current run of a study. Raises MissingStudy."""
        path = self.path(name)
        rows = current_run(store.read(path, KEYS.get(name, columns.ROW_KEY)))
        if rows.empty:
            raise MissingStudy(f"{path} is missing or empty: python experiments/sweep.py study={name} makes it")
        notes = path.with_suffix(".json")
        record = store.read_json(notes) if notes.exists() else {}
        names.learn(record.get("families", {}))
        return Study(name, path, rows, record if record.get("run_id") == rows["run_id"].iloc[0] else {})


def devices(root: Path) -> list[str]:
    """The folders of devices. Raises MissingStudy if there is not even a folder of results."""
    if not root.is_dir():
        raise MissingStudy(f"{root} is no folder of results")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in NOT_DEVICES)


def find_device(root: Path, asked: str | None) -> str:
    """The device asked for, or the newest. Raises MissingStudy that names those there are."""
    if asked is not None and asked not in devices(root):
        raise MissingStudy(f"no results of device {asked}; there are: {', '.join(devices(root)) or 'none'}")
    return asked or newest_device(root)


def newest_device(root: Path) -> str:
    """The device whose rows are the newest; the interpreter only where there is no other. Raises MissingStudy."""
    newest: dict[str, str] = {}
    for path in root.glob("*/*.csv"):
        if path.parent.name not in NOT_DEVICES:
            rows = store.read(path, ())
            stamp = str(rows["timestamp_utc"].max()) if len(rows) else ""
            newest[path.parent.name] = max(stamp, newest.get(path.parent.name, ""))
    if not newest:
        raise MissingStudy(
            f"no results/<device>/<study>.csv under {root}: python experiments/sweep.py study=... makes one"
        )
    return max(newest, key=lambda device: (device != INTERPRETER, newest[device]))
