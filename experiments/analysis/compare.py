"""Rows of one run compared: the timed rows of a launch mode, and ratios of one system to others case by case.

Every function gives its rows in an order that the order of the CSV does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from ..table import columns, current
from ..table.card_speed import CARD_US, slower
from . import names
from .noise import apart

CASE_COLUMNS = columns.names(columns.CASE)
LAUNCH_ORDER = {"graph": 0, "eager": 1}
"""Which launch mode stands for a system whose medians are equal in both: the one that a serving system runs."""
HOST = ["device_uuid", "git_commit"]
"""What tells that two rows were launched by one host: a card, or a commit, as a run may have several cards."""
METHOD_ORDER = {"model": 0, "interpreter": 1, "counters": 2}
"""Ways to count traffic, those that need no GPU first."""


class Source(NamedTuple):
    """The file that a finding comes from: `deciding` of its `total` rows, or the commit whose tests it records."""

    file: str
    deciding: int = 0
    total: int = 0
    commit: str = ""


class NoEvidence(Exception):
    """The results cannot decide: nothing was run, or (`tried`) what was run could not be, for the reasons given."""

    def __init__(self, message: str, sources: Iterable[Source] = (), *, tried: bool = False) -> None:
        super().__init__(message)
        self.sources, self.tried = tuple(sources), tried


def current_run(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the run with the newest row, in the order of `ordered`: runs are never mixed."""
    return ordered(current.current_run(frame)) if len(frame) else frame


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by case, system and launch mode, CUDA graph first; what is left open goes by all other columns.

    So figures and report are the same whichever system, mode or job wrote its rows first.
    """
    first = [name for name in (*CASE_COLUMNS, "implementation", "launch", "stage", "tensor", "method") if name in frame]
    rest = [str(name) for name in frame if name not in first]

    def key(column: pd.Series) -> pd.Series:
        if column.name in ("launch", "method"):
            return column.map(LAUNCH_ORDER if column.name == "launch" else METHOD_ORDER)
        return column if pd.api.types.is_numeric_dtype(column) else column.astype("string")

    return frame.sort_values([*first, *rest], key=key, kind="stable").reset_index(drop=True)


def fastest_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by their median latency; equal ones by launch mode, CUDA graph first, and then in the order of systems."""
    systems = {name: place for place, name in enumerate(names.in_order(rows["implementation"]))}
    tie = rows.assign(launch=rows["launch"].map(LAUNCH_ORDER), implementation=rows["implementation"].map(systems))
    order = tie.sort_values(["p50_us", "launch", "implementation", "case_hash"], kind="stable").index
    return rows.loc[order]


def timed(frame: pd.DataFrame, launch: str) -> pd.DataFrame:
    """Rows with a latency: those of one launch mode, or for ``best`` the faster mode of each case and system."""
    rows = frame[(frame["status"] == "ok") & frame["p50_us"].notna()].reset_index(drop=True)
    if launch != "best":
        return rows[rows["launch"] == launch]
    return fastest_first(rows).drop_duplicates(["run_id", "case_hash", "implementation"])


def compare(frame: pd.DataFrame, system: str, others: Iterable[str], launch: str) -> pd.DataFrame:
    """Speed of `system` over each of the others, case by case, inside a run; `launch` as for `timed`. Eager launches
    are as fast as their host, so those of two hosts are no pair.

    Columns: those of `system`'s row, other, ratio (latency of the other / of the system; of rows of two cards, as if
    both were as fast: `table/card_speed.py`), low and high, the least and most that the p20 to p80 of both leave open,
    further apart by what separates two processes where the rows say it (`noise.py`), and by the two cards, as not all
    of a latency may be memory traffic. Raises NoEvidence if no case has both.
    """
    others = list(others)
    rows = timed(frame, launch)
    own, against = rows[rows["implementation"] == system], rows[rows["implementation"].isin(others)]
    host = [name for name in HOST if launch == "eager" and name in rows]
    card = [CARD_US] if CARD_US in rows else []
    columns = ["run_id", "case_hash", "implementation", "p50_us", "p20_us", "p80_us", *host, *card]
    pairs = own.merge(against[columns], on=["run_id", "case_hash"], suffixes=("", "_other"))
    unlike = list(dict.fromkeys(pairs["implementation_other"]))
    if host:
        pairs = pairs[pd.concat([pairs[name] == pairs[f"{name}_other"] for name in host], axis=1).any(axis=1)]
    if pairs.empty:
        raise no_pairs(frame, [system, *others], unlike)
    pairs["other"] = pairs["implementation_other"]
    own_card = slower(pairs)
    pairs["ratio"] = pairs["p50_us_other"] / pairs["p50_us"] * own_card
    pairs["low"] = pairs["p20_us_other"] / pairs["p80_us"] * own_card.clip(upper=1) / apart(pairs)
    pairs["high"] = pairs["p80_us_other"] / pairs["p20_us"] * own_card.clip(lower=1) * apart(pairs)
    order = ["model", "dtype", "num_experts", "tokens", "skew", "other", "case_hash", "launch"]
    return pairs.sort_values(order, kind="stable").reset_index(drop=True)


def no_pairs(frame: pd.DataFrame, systems: list[str], unlike: Sequence[str] = ()) -> NoEvidence:
    """Why no case of `frame` has all it takes: systems that were not asked for, or asked for and could not run; or that
    were timed by another host than the first one, `unlike` it."""
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
    if unlike:
        reasons = [
            f"{systems[0]} and {', '.join(unlike)} were timed at the same points, but launched eagerly by different "
            "hosts (another card and another commit), and eager latencies are the host's: one run has to time both"
        ]
    detail = "; ".join(reasons) or "no case was timed for both sides"
    return NoEvidence(f"There is no case to compare: {detail}", sources(frame, 0), tried=tried)


def sources(frame: pd.DataFrame, deciding: int) -> tuple[Source, ...]:
    """The CSV of the rows and how many of them decide; empty without rows."""
    return (Source(f"{frame['study'].iloc[0]}.csv", deciding, len(frame)),) if len(frame) else ()


def span(values: pd.Series, digits: int = 2) -> str:
    """Least to most, as text."""
    least, most = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return least if least == most else f"{least}–{most}"


def systems(rows: pd.DataFrame) -> list[str]:
    """Every implementation of the rows, in the order of all figures."""
    return names.in_order(rows["implementation"])


def plain(rows: pd.DataFrame, formats: bool = False) -> pd.DataFrame:
    """The rows of one dtype, layer, gating, routing and weight format, for figures that show one: bf16, the plain
    layer, plain softmax, drawn routing and weights that are not packed where there are such rows. formats: those of all
    weight formats."""
    firsts = [("dtype", "bf16"), ("layer", "plain"), ("gating", "softmax"), ("routing", "drawn")]
    for column, first in [*firsts, *([] if formats else [("quant", "none")])]:
        values = sorted(rows[column].unique()) if column in rows else []
        rows = rows[rows[column] == (first if first in values else values[0])] if values else rows
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
    lacking = lacking.astype({"status": object, "reason": object})  # where none has a reason, pandas reads a number
    return lacking.fillna({"status": "not run", "reason": "no row in this run"})


def ratios(rows: pd.DataFrame, system: str, others: Iterable[str], launch: str) -> pd.DataFrame:
    """`compare`, but empty where no case has both."""
    try:
        return compare(rows, system, others, launch)
    except NoEvidence:
        return rows.head(0).assign(other="", ratio=0.0, low=0.0, high=0.0)


def to_best(pairs: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of `ratios`, those against the fastest other system of each case; of equal ones the first by name."""
    order = ["ratio", "other", "case_hash", "implementation"]
    return pairs.sort_values(order, kind="stable").drop_duplicates(["case_hash", "implementation"])


def best_eager(pairs: pd.DataFrame, rows: pd.DataFrame, others: Iterable[str]) -> pd.DataFrame:
    """`to_best` of eager `pairs`, at the cases where every other system that `rows` have was timed by the same host: of
    some of them alone the fastest is not the best other one."""
    there = timed(rows[rows["implementation"].isin(list(others))], "eager").groupby("case_hash")
    missing = there["implementation"].nunique() - pairs.groupby("case_hash")["other"].nunique()
    return to_best(pairs[pairs["case_hash"].isin(missing.index[missing == 0])])


def panels(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(model, dtype, gating) of the rows, in the order of panels: bf16 before fp16, the paper's models first."""
    keys = set(zip(rows["model"].astype(str), rows["dtype"].astype(str), rows["gating"].astype(str)))
    models = names.models_in_order(key[0] for key in keys)
    return sorted(keys, key=lambda key: (key[1], models.index(key[0]), key[2]))


def panel_rows(rows: pd.DataFrame, key: tuple[str, str, str], system: str | None = None) -> pd.DataFrame:
    """The rows of one panel, a key of `panels`, and of one system if it is named."""
    model, dtype, gating = key
    rows = rows[(rows["model"] == model) & (rows["dtype"] == dtype) & (rows["gating"] == gating)]
    return rows if system is None else rows[rows["implementation"] == system]
