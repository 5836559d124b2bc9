"""The headline study as its figure and the report need it: `fast` against its peers and against the best of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..table.card_speed import as_of_one_card
from ..table.limits import LIMIT, below_limit
from . import compare, names
from .names import EIGHT_BITS, FAST
from .noise import apart

SHAKY = 1.05
"""From this p80 over p20 on, a limit is marked: the clock moved while it was timed."""
OWN = ("limit", "fast", "fastvariant", "paper")
"""Families that are no peers: the measured limit, and what this project wrote."""


@dataclass(frozen=True)
class Standing:
    """Ratios of speed at some points: geometric mean, least and most; and at how many `fast` is ahead of the other,
    behind it, and the same within the noise."""

    points: int
    mean: float
    least: float
    most: float
    ahead: int
    behind: int
    same: int


def peers(rows: pd.DataFrame) -> list[str]:
    """Every system of the rows but the limit and our own families, in the order of all figures."""
    return [name for name in compare.systems(rows) if names.family_of(name) not in OWN]


def timed_peers(rows: pd.DataFrame) -> list[str]:
    """The labels of those that have a latency."""
    return list(map(names.label_of, peers(compare.timed(rows, "best"))))


def against_best(rows: pd.DataFrame, systems: list[str], ours: str = FAST) -> pd.DataFrame:
    """The rows of `compare.ratios` of ours, best launch mode each, over the fastest of the systems at each case.

    Like against like: to a system with 8-bit activations ours is the faster of `fast` and `fast_a8`, to all others
    `fast`. Both are called as `ours` here; `activations` says which it was.
    """
    others = rows["implementation"].isin(systems)
    eight = others & (ours == FAST) & (rows["activations"] == "a8") & rows["case_hash"].isin(_cases(rows, EIGHT_BITS))
    own = rows["implementation"] == ours
    pairs = compare.ratios(rows[own | (others & ~eight)], ours, systems, "best")
    if eight.any():
        both = rows[own | (rows["implementation"] == EIGHT_BITS)].assign(
            implementation=ours
        )  # of which the faster counts
        pairs = pd.concat([pairs, compare.ratios(pd.concat([both, rows[eight]]), ours, systems, "best")])
    order = ["model", "dtype", "skew", "tokens", "case_hash"]
    return compare.to_best(pairs).sort_values(order, kind="stable")


def _cases(rows: pd.DataFrame, system: str) -> pd.Series:
    """Where a system has a latency."""
    return rows.loc[(rows["implementation"] == system) & rows["p50_us"].notna(), "case_hash"]


def relative(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the best launch mode with `ratio` to the fastest ranked system of their case, latencies as if of one card
    as in `compare.compare`; `same`: no slower than it beyond the noise, with that correction and without; and `below`:
    below the measured limit. The limit has a ratio too, which may be below 1, and is not ranked."""
    best = compare.timed(rows, "best")
    best = best.assign(below=below_limit(best), alike=as_of_one_card(best))
    fastest = best[best["implementation"] != LIMIT].sort_values("alike", kind="stable").drop_duplicates("case_hash")
    best = best.merge(fastest[["case_hash", "p50_us", "p80_us", "alike"]], on="case_hash", suffixes=("", "_fastest"))
    ratio = best["alike"] / best["alike_fastest"]
    card = best["p50_us"] / best["p50_us_fastest"] / ratio
    within = best["p80_us_fastest"] * card.clip(lower=1) * apart(best)
    return best.assign(ratio=ratio, same=best["p20_us"] <= within)


def geometric_mean(ratios: pd.Series) -> float:
    """Of positive ratios; at least one is needed."""
    return float(np.exp(np.log(ratios).mean()))


def standing(pairs: pd.DataFrame) -> Standing | None:
    """How `fast` stands at the rows of `against_best`; None without any."""
    if pairs.empty:
        return None
    ahead, behind = int((pairs["low"] > 1).sum()), int((pairs["high"] < 1).sum())
    return Standing(
        points=len(pairs), mean=geometric_mean(pairs["ratio"]), least=pairs["ratio"].min(), most=pairs["ratio"].max(),
        ahead=ahead, behind=behind, same=len(pairs) - ahead - behind,
    )  # fmt: skip
