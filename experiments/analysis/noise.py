"""How far two measurements of the same thing differ: a difference between two systems inside of that is a tie.

Each system runs in a process of its own, which times one fixed read before its points; and some systems are timed at
one point in two studies, whose runs may be of two days. A run's own percentiles hold the noise inside a process alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..measure.measurement import kinds
from ..table import store
from ..table.current import OTHER_SOFTWARE, newest, read_run
from ..table.limits import LIMIT

APART = "apart"
"""The column that `Results.study` adds to the rows of a device: `measured` of it."""
USUAL = 0.9
"""The share of latencies in two runs that `between_runs` covers: in the rest a clock or a host has changed."""
LEAST = 10
"""Fewer points that two runs share tell nothing."""
SAME = ["case_hash", "implementation", "launch", "implementation_version", "revision", "method_revision"]
"""What two rows of different runs have in common that time the same thing."""


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


def between_runs(frames: Iterable[pd.DataFrame]) -> float:
    """The factor within which `USUAL` of the latencies of one system at one point in two runs differ, each over what
    the limit took in its own run; 1 where the runs share fewer than `LEAST`. In CUDA graphs: an eager latency depends
    on the host. frames: layer rows of one run each."""
    rows = pd.concat([pd.DataFrame(columns=[*SAME, "run_id", "share"]), *map(_shares, frames)])
    pairs = rows.merge(rows, on=SAME, suffixes=("", "_other"))
    pairs = pairs[pairs["run_id"] < pairs["run_id_other"]]
    change = pairs["share"].astype(float) / pairs["share_other"].astype(float)
    return float(np.exp(np.quantile(np.abs(np.log(change)), USUAL))) if len(change) >= LEAST else 1.0


def _shares(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[(rows["status"] == "ok") & (rows["launch"] == "graph") & (rows["implementation"] != LIMIT)]
    return rows.assign(share=rows["p50_us"] / rows["stream_us"])[[*SAME, "run_id", "share"]].dropna(subset="share")


def measured(device: Path) -> float:
    """The larger of `between_processes` and `between_runs` of a device's folder."""
    return max(between_processes(device), between_runs(_layer_runs(device)))


def _layer_runs(device: Path) -> list[pd.DataFrame]:
    """The current run of each study that times whole layers; one that is damaged is told where it is read."""
    layer, runs = kinds()["layer"], []
    for path in map(newest, sorted(device.glob("*.csv"))):
        with contextlib.suppress(store.Damaged):
            if {*layer.key, "stream_us"} <= set(store.header(path)):
                runs.append(read_run(path, layer)[0])
    return runs


def apart(rows: pd.DataFrame) -> pd.Series | float:
    """That factor for each row; 1 where it is not known."""
    return rows.get(APART, 1.0)


def same_process(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows for a comparison of points that one process timed, to which the factor does not apply."""
    return rows.drop(columns=APART, errors="ignore")
