"""Rows of one run compared: the timed rows of a launch mode, and ratios of one system to its peers case by case."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ..table.columns import CASE_COLUMNS, STAGE_KEY, TRAFFIC_KEY
from . import names

KEYS = {"stages": STAGE_KEY, "traffic": TRAFFIC_KEY}


class NoEvidence(Exception):
    """The results cannot decide: nothing was run, or (`tried`) what was run could not be, for the reasons given."""

    def __init__(self, message: str, rows: str = "-", *, tried: bool = False) -> None:
        super().__init__(message)
        self.rows, self.tried = rows, tried


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


def span(values: pd.Series, digits: int = 2) -> str:
    """Least to most, as text."""
    least, most = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return least if least == most else f"{least}–{most}"


def systems(rows: pd.DataFrame) -> list[str]:
    """Every implementation of the rows, in the order of all figures."""
    return names.in_order(rows["implementation"])


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one dtype and gating, for figures that show one: bf16 and plain softmax where there are such rows."""
    for column, first in (("dtype", "bf16"), ("gating", "softmax")):
        values = list(rows[column].unique())
        rows = rows[rows[column] == (first if first in values else values[0])]
    return rows


def family(rows: pd.DataFrame, name: str) -> list[str]:
    """The implementations of one family in the rows, in the order of all figures."""
    return [system for system in systems(rows) if names.family_of(system) == name]


def missing(rows: pd.DataFrame, launch: str = "best") -> pd.DataFrame:
    """The (case, implementation) pairs of the grid with no timing in a launch mode: case columns, status and reason.

    For ``best`` the reason is that of the eager launch, which says more than that a graph cannot hold the system.
    A pair with no row at all has status ``not run``.
    """
    case = [name for name in CASE_COLUMNS if name in rows]
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
    models = names.models_in_order(key[0] for key in found)
    return sorted(found, key=lambda key: (key[1], models.index(key[0]), key[2]))


def panel_rows(rows: pd.DataFrame, key: tuple[str, str, str], system: str | None = None) -> pd.DataFrame:
    """The rows of one panel, a key of `panels`, and of one system if it is named."""
    model, dtype, gating = key
    rows = rows[(rows["model"] == model) & (rows["dtype"] == dtype) & (rows["gating"] == gating)]
    return rows if system is None else rows[rows["implementation"] == system]
