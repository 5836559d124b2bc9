"""What the rules read: the current run of every study of one device, test outcomes, and comparisons inside a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .. import schema

KEYS = {"stages": schema.STAGE_KEY, "traffic": schema.TRAFFIC_KEY}


class NoEvidence(Exception):
    """The results cannot decide: nothing was run, or (`tried`) what was run could not be, for the reasons given."""

    def __init__(self, message: str, rows: str = "-", *, tried: bool = False) -> None:
        super().__init__(message)
        self.rows, self.tried = rows, tried


@dataclass(frozen=True)
class Evidence:
    """What the rules are given.

    frames: the current run of each study, by its name, absent if there is no CSV; tests: outcomes of the test suite
    by where it ran (`tests/outcomes.py` writes them); portability: results/portability.csv, empty if there is none."""

    device: str
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    portability: pd.DataFrame = field(default_factory=pd.DataFrame)

    def study(self, name: str) -> pd.DataFrame:
        """The rows of a study; raises NoEvidence if it was not run on this device."""
        if name not in self.frames:
            raise NoEvidence(f"The study {name} has not been run on {self.device}")
        return self.frames[name]


def current_run(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the run with the newest row: runs are never mixed."""
    if frame.empty:
        return frame
    newest = frame.sort_values("timestamp_utc", kind="stable")["run_id"].iloc[-1]
    return frame[frame["run_id"] == newest].reset_index(drop=True)


def timed(frame: pd.DataFrame, launch: str) -> pd.DataFrame:
    """Rows with a latency: those of one launch mode, or for ``best`` the faster mode of each case and system."""
    rows = frame[(frame["status"] == "ok") & frame["p50_us"].notna()]
    if launch != "best":
        return rows[rows["launch"] == launch]
    return rows.sort_values("p50_us").drop_duplicates(["run_id", "case_hash", "implementation"])


def compare(frame: pd.DataFrame, system: str, peers: Iterable[str], launch: str) -> pd.DataFrame:
    """Speed of `system` over each peer, case by case, inside a run; `launch` as for `timed`.

    Columns: those of `system`'s row, peer, ratio (latency of the peer / of the system), low and high, the least and
    most that the p20 to p80 of both leave open. Raises NoEvidence if no case has both.
    """
    peers = list(peers)
    rows = timed(frame, launch)
    own, others = rows[rows["implementation"] == system], rows[rows["implementation"].isin(peers)]
    columns = ["run_id", "case_hash", "implementation", "p50_us", "p20_us", "p80_us"]
    pairs = own.merge(others[columns], on=["run_id", "case_hash"], suffixes=("", "_peer"))
    if pairs.empty:
        raise no_pairs(frame, [system, *peers])
    pairs["peer"] = pairs["implementation_peer"]
    pairs["ratio"] = pairs["p50_us_peer"] / pairs["p50_us"]
    pairs["low"] = pairs["p20_us_peer"] / pairs["p80_us"]
    pairs["high"] = pairs["p80_us_peer"] / pairs["p20_us"]
    return pairs.sort_values(["model", "dtype", "num_experts", "tokens", "skew", "peer"]).reset_index(drop=True)


def no_pairs(frame: pd.DataFrame, systems: list[str]) -> NoEvidence:
    """Why no case of `frame` has all it takes: systems that were not asked for, or asked for and could not run."""
    reasons = []
    tried = False
    for name in systems:
        rows = frame[frame["implementation"] == name]
        if rows.empty:
            reasons.append(f"{name}: no rows")
        elif not (rows["status"] == "ok").any():
            tried = True
            first = rows.iloc[0]
            reasons.append(f"{name}: {first['status']} ({first['reason']})")
    detail = "; ".join(reasons) or "no case was timed for both sides"
    return NoEvidence(f"There is no case to compare: {detail}", rows_text(frame, 0), tried=tried)


def rows_text(frame: pd.DataFrame, deciding: int) -> str:
    """The CSV and how many of its rows decide."""
    return f"{frame['study'].iloc[0]}.csv: {deciding} of {len(frame)} rows" if len(frame) else "-"


def rows_of(pairs: pd.DataFrame) -> int:
    """How many CSV rows stand behind a table of comparisons: a row of the system serves all its peers."""
    own = pairs[["case_hash", "implementation", "launch"]].drop_duplicates()
    return len(own) + len(pairs[["case_hash", "peer"]].drop_duplicates())


def span(values: pd.Series, digits: int = 2) -> str:
    """Least to most, as text."""
    least, most = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return least if least == most else f"{least}–{most}"
