"""How far two measurements of the same thing differ: a difference between two systems inside of that is a tie.

Each system runs in a process of its own, which times one fixed read before its points; and some systems are timed at
one point in two studies, whose runs may be of two days. A run's own percentiles hold the noise inside a process alone.
Layers of tens of µs and of some ms differ by other shares from run to run, so the noise goes by latency.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..measure.measurement import kinds
from ..table import store
from ..table.card_speed import CARD_US, processes
from ..table.current import OTHER_SOFTWARE, newest, read_run
from ..table.limits import LIMIT

APART = "apart"
"""The column that `Results.study` adds to the rows of a device: the factor of `measured` for each."""
USUAL = 0.9
"""The share of latencies in two runs that `between_runs` covers: in the rest a clock or a host has changed."""
LEAST = 10
"""Fewer points that two runs share tell nothing; fewer in a band of latencies, and it has the factor of all."""
BANDS_US = (0.0, 50.0, 200.0, 800.0, np.inf)
"""Where one band of latencies ends and the next begins."""
SAME = ["case_hash", "implementation", "launch", "implementation_version", "revision", "method_revision"]
"""What two rows of different runs have in common that time the same thing."""
NUMBERS = [f"{name}{end}" for name in ("p50_us", "stream_us", CARD_US) for end in ("", "_other")]


@dataclass(frozen=True)
class Noise:
    """factors: for each band of `BANDS_US`, how far two measurements of one latency differ."""

    factors: tuple[float, ...] = (1.0,) * (len(BANDS_US) - 1)

    def at_least(self, factor: float) -> Noise:
        """This noise, nowhere below a factor."""
        return Noise(tuple(max(factor, own) for own in self.factors))

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with the column `APART`: by p50_us, the largest factor of all where that is missing."""
        if "p50_us" not in rows:
            return rows.assign(**{APART: max(self.factors)})
        bands = pd.cut(rows["p50_us"].astype(float), BANDS_US, labels=False)
        return rows.assign(**{APART: bands.map(dict(enumerate(self.factors))).fillna(max(self.factors)).astype(float)})


def spread(record: Mapping[str, Any], rows: pd.DataFrame | None = None) -> float:
    """The largest ratio, 1 or more, between the times of the fixed read in the processes of a run, of each the shorter
    of its two: where one fell into a slow moment, the cases that did were timed again. record: its JSON; rows: of that
    run, if processes are to be compared on each of its cards alone."""
    reads: dict[str, list[float]] = {}
    for card, us, _ in processes(pd.DataFrame() if rows is None else rows, record):
        reads.setdefault(card if rows is not None else "", []).append(us)
    return max((max(times) / min(times) for times in reads.values()), default=1.0)


def between_processes(device: Path) -> float:
    """The largest `spread` of all runs in the folder of a device, on each card alone; 1 where none has recorded one.

    A damaged record is told where the rows beside it are read, and costs no other study.
    """
    spreads = [1.0]
    for path in [*sorted(device.glob("*.json")), *sorted(device.glob(f"{OTHER_SOFTWARE}*/*.json"))]:
        with contextlib.suppress(store.Damaged):
            rows = path.with_suffix(".csv")
            spreads.append(spread(store.read_json(path), store.read(rows, ()) if rows.exists() else pd.DataFrame()))
    return max(spreads)


def between_runs(frames: Iterable[pd.DataFrame]) -> Noise:
    """The factor within which `USUAL` of the latencies of one system at one point in two runs differ, by bands of
    latency; 1 where the runs share fewer than `LEAST`. A point has one vote, however many runs share it. By how much
    one row's card is slower than the other's, by the fixed read on both or else by the median of what the limit took,
    is no noise. In CUDA graphs: an eager latency depends on the host. frames: layer rows of one run each."""
    columns = [*SAME, "run_id", "p50_us", "stream_us", CARD_US]
    rows = pd.concat(
        [pd.DataFrame(columns=columns), *(_comparable(frame).reindex(columns=columns) for frame in frames)]
    )
    pairs = rows.merge(rows, on=SAME, suffixes=("", "_other"))
    pairs = pairs[pairs["run_id"] < pairs["run_id_other"]].astype(dict.fromkeys(NUMBERS, float))
    votes = 1 / pairs.groupby(SAME)["run_id"].transform("size")
    if votes.sum() < LEAST:
        return Noise()
    cards = (pairs["stream_us"] / pairs["stream_us_other"]).groupby([pairs["run_id"], pairs["run_id_other"]])
    slower = (pairs[CARD_US] / pairs[f"{CARD_US}_other"]).fillna(cards.transform("median"))
    change = np.abs(np.log(pairs["p50_us"] / pairs["p50_us_other"] / slower))
    bands = pd.cut(pairs["p50_us"], BANDS_US, labels=False)
    own = [bands == band for band in range(len(BANDS_US) - 1)]
    parts = [part if votes[part].sum() >= LEAST else bands.notna() for part in own]
    return Noise(tuple(float(np.exp(_usual(change[part], votes[part]))) for part in parts))


def _usual(values: pd.Series, votes: pd.Series) -> float:
    """The least value that at least `USUAL` of the votes do not exceed."""
    ordered = values.sort_values()
    return ordered[votes[ordered.index].cumsum() >= USUAL * votes.sum() - 1e-9].iloc[0]


def _comparable(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[(rows["status"] == "ok") & (rows["launch"] == "graph") & (rows["implementation"] != LIMIT)]
    return rows.dropna(subset="stream_us")


def measured(device: Path) -> Noise:
    """The larger of `between_processes` and, by bands of latency, `between_runs` of a device's folder."""
    return between_runs(_layer_runs(device)).at_least(between_processes(device))


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


def percents(rows: pd.DataFrame) -> pd.Series:
    """`apart` in per cent."""
    return 100 * (pd.Series(apart(rows), dtype=float) - 1)


def same_process(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows for a comparison of points that one process timed, to which the factor does not apply."""
    return rows.drop(columns=APART, errors="ignore")
