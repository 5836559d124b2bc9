"""How far two processes that time the same thing differ: a difference between two systems inside of that is a tie.

Each system runs in a process of its own, which times one fixed read before its points. A run's own percentiles hold the
noise inside a process alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..table import store
from ..table.current import OTHER_SOFTWARE

APART = "apart"
"""The column that `Results.study` adds to the rows of a device: `between_processes` of it."""


def spread(record: Mapping[str, Any]) -> float:
    """The largest ratio, 1 or more, between the times of the fixed read in the processes of a run; record: its JSON."""
    reads = [process["stream_before_us"] for process in record.get("processes", []) if process.get("stream_before_us")]
    return max(reads) / min(reads) if reads else 1.0


def between_processes(device: Path) -> float:
    """The largest `spread` of all runs in the folder of a device; 1 where none has recorded one.

    A damaged record is told where the rows beside it are read, and costs no other study.
    """
    spreads = [1.0]
    for path in [*sorted(device.glob("*.json")), *sorted(device.glob(f"{OTHER_SOFTWARE}*/*.json"))]:
        with contextlib.suppress(store.Damaged):
            spreads.append(spread(store.read_json(path)))
    return max(spreads)


def apart(rows: pd.DataFrame) -> pd.Series | float:
    """That factor for each row; 1 where it is not known."""
    return rows.get(APART, 1.0)


def same_process(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows for a comparison of points that one process timed, to which the factor does not apply."""
    return rows.drop(columns=APART, errors="ignore")
