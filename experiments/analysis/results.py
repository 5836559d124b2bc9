"""What the figures read: the current run of each study of one device, and which of its points are missing and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..measure.measurement import kind_of, kinds
from ..table import store
from ..table.current import OTHER_SOFTWARE, newest, read_run
from ..table.provenance import INTERPRETER
from . import names
from .compare import ordered
from .noise import Noise, measured

KINDS = kinds()
DEVICE_FREE = ("traffic",)
"""Studies whose rows do not depend on the device, so that those of the interpreter's folder serve too."""
NOT_DEVICES = ("paper", "reference")


class MissingStudy(Exception):
    """There is no CSV of a study; the message says what makes it."""

    one_line = True


@dataclass(frozen=True)
class Study:
    """The current run of one study: its rows, as `read_run` gives them, and the provenance beside the CSV."""

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

    @cached_property
    def apart(self) -> Noise:
        """How far two measurements of the same thing differ on this device."""
        return measured(self.root / self.device)

    def path(self, study: str) -> Path:
        """CSV of a study; for counted bytes the interpreter's, where the device has none of its own."""
        path = newest(self.root / self.device / f"{study}.csv")
        return newest(self.root / INTERPRETER / path.name) if study in DEVICE_FREE and not path.exists() else path

    def study(self, name: str) -> Study:
        """The current run of a study. Raises MissingStudy."""
        path = self.path(name)
        rows, record = read_run(path, kind_of(store.header(path)))
        if rows.empty:
            raise MissingStudy(f"{path} is missing or empty: python experiments/sweep.py study={name} makes it")
        names.learn(record.get("families", {}))
        return Study(name, path, self.apart.of(ordered(rows)), record)


def devices(root: Path) -> list[str]:
    """The folders of devices. Raises MissingStudy if there is not even a folder of results."""
    if not root.is_dir():
        raise MissingStudy(f"{root} is no folder of results")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in NOT_DEVICES)


def find_device(root: Path, asked: str | None) -> str:
    """The device asked for, or the default. Raises MissingStudy that names those there are."""
    if asked is not None and asked not in devices(root):
        raise MissingStudy(f"no results of device {asked}; there are: {', '.join(devices(root)) or 'none'}")
    return asked or default_device(root)


def default_device(root: Path) -> str:
    """The device with the most studies, of equal ones the one whose rows are the newest; the interpreter only where
    there is no other. Raises MissingStudy."""
    stamps: dict[str, dict[str, str]] = {}
    for path in [*root.glob("*/*.csv"), *root.glob(f"*/{OTHER_SOFTWARE}*/*.csv")]:
        device = path.relative_to(root).parts[0]
        if device not in NOT_DEVICES:
            rows = store.read(path, ())
            of_device = stamps.setdefault(device, {})
            of_device[path.name] = max(
                str(rows["timestamp_utc"].max()) if len(rows) else "", of_device.get(path.name, "")
            )
    if not stamps:
        raise MissingStudy(
            f"no results/<device>/<study>.csv under {root}: python experiments/sweep.py study=... makes one"
        )
    return max(stamps, key=lambda device: (device != INTERPRETER, len(stamps[device]), max(stamps[device].values())))
