"""What the figures read: the current run of each study of one device, and which of its points are missing and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..experiments import schema
from ..experiments.claims.evidence import KEYS, NoEvidence, compare, current_run, timed
from . import style

LIMIT = "stream"
INTERPRETER = "interpreter"
"""Device folder of a machine with no GPU. It holds counted bytes, which are the same on every machine."""
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
        rows = current_run(schema.read(path, KEYS.get(name, schema.ROW_KEY)))
        if rows.empty:
            raise MissingStudy(f"{path} is missing or empty: python experiments/sweep.py study={name} makes it")
        notes = path.with_suffix(".json")
        record = schema.read_json(notes) if notes.exists() else {}
        style.learn(record.get("families", {}))
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
            rows = schema.read(path, ())
            stamp = str(rows["timestamp_utc"].max()) if len(rows) else ""
            newest[path.parent.name] = max(stamp, newest.get(path.parent.name, ""))
    if not newest:
        raise MissingStudy(
            f"no results/<device>/<study>.csv under {root}: python experiments/sweep.py study=... makes one"
        )
    return max(newest, key=lambda device: (device != INTERPRETER, newest[device]))


def systems(rows: pd.DataFrame) -> list[str]:
    """Every implementation of the rows, in the order of all figures."""
    return style.in_order(rows["implementation"])


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one dtype and gating, for figures that show one: bf16 and plain softmax where there are such rows."""
    for column, first in (("dtype", "bf16"), ("gating", "softmax")):
        values = list(rows[column].unique())
        rows = rows[rows[column] == (first if first in values else values[0])]
    return rows


def family(rows: pd.DataFrame, name: str) -> list[str]:
    """The implementations of one family in the rows, in the order of all figures."""
    return [system for system in systems(rows) if style.look(system).family == name]


def missing(rows: pd.DataFrame, launch: str = "best") -> pd.DataFrame:
    """The (case, implementation) pairs of the grid with no timing in a launch mode: case columns, status and reason.

    For ``best`` the reason is that of the eager launch, which says more than that a graph cannot hold the system.
    A pair with no row at all has status ``not run``.
    """
    case = [name for name in schema.CASE_COLUMNS if name in rows]
    cases = rows[case].drop_duplicates("case_hash")
    grid = cases.merge(rows[["implementation"]].drop_duplicates(), how="cross")
    order = {"eager": 0, "graph": 1} if launch == "best" else {launch: 0}
    why = rows[(rows["status"] != "ok") & rows["launch"].isin(list(order))]
    why = why.sort_values("launch", key=lambda column: column.map(order), kind="stable")
    why = why.drop_duplicates(["case_hash", "implementation"])[["case_hash", "implementation", "status", "reason"]]
    done = timed(rows, launch)[["case_hash", "implementation"]].drop_duplicates()
    grid = grid.merge(done.assign(done=True), on=["case_hash", "implementation"], how="left")
    lacking = grid[grid["done"].isna()].drop(columns="done").merge(why, on=["case_hash", "implementation"], how="left")
    return lacking.fillna({"status": "not run", "reason": "no row in this run"})


def ratios(rows: pd.DataFrame, system: str, peers: Iterable[str], launch: str) -> pd.DataFrame:
    """`compare`, but empty where no case has both."""
    try:
        return compare(rows, system, peers, launch)
    except NoEvidence:
        return rows.head(0).assign(peer="", ratio=0.0, low=0.0, high=0.0)


def to_best(pairs: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of `ratios`, those against the fastest peer of each case."""
    return pairs.sort_values("ratio").drop_duplicates(["case_hash", "implementation"])


def panels(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(model, dtype, gating) of the rows, in the order of panels: bf16 before fp16, the paper's models first."""
    found = set(zip(rows["model"].astype(str), rows["dtype"].astype(str), rows["gating"].astype(str)))
    models = style.models_in_order(key[0] for key in found)
    return sorted(found, key=lambda key: (key[1], models.index(key[0]), key[2]))


def panel_rows(rows: pd.DataFrame, key: tuple[str, str, str], system: str | None = None) -> pd.DataFrame:
    """The rows of one panel, a key of `panels`, and of one system if it is named."""
    model, dtype, gating = key
    rows = rows[(rows["model"] == model) & (rows["dtype"] == dtype) & (rows["gating"] == gating)]
    return rows if system is None else rows[rows["implementation"] == system]
