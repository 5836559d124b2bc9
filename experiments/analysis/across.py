"""Two GPUs side by side: the points and systems that both have, and whether the order of the systems is the same.

Latencies are compared inside of a run alone; what is compared between the GPUs is the order that each gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from .compare import timed
from .headline import against_best, geometric_mean, peers, relative
from .names import LIMIT
from .noise import apart

STUDIES = ("headline", "quant", "native")
"""The studies that measure the field."""
CASE = ["study", "case_hash"]


@dataclass(frozen=True)
class Carried:
    """What two GPUs agree on, over the points and systems that both have.

    points: cases; fastest: those at which one system is the fastest of both, or a tie with it; pairs: of systems at a
    case that are apart beyond the noise on both GPUs; order: those in the same order; systems: a row for each, with the
    geometric mean of its latency over that of the fastest of the case on both, and at how many cases; leads: a row for
    each case with `fast`, with its ratio to the best other system on both, that system and whether it is a tie.
    """

    points: int
    fastest: int
    pairs: int
    order: int
    systems: pd.DataFrame
    leads: pd.DataFrame


def carried(one: Mapping[str, pd.DataFrame], two: Mapping[str, pd.DataFrame]) -> Carried | None:
    """The rows of two GPUs by study, compared; None where no point has two systems on both."""
    sides = [_ranked(one), _ranked(two)]
    shared = sides[0][[*CASE, "implementation"]].merge(sides[1][[*CASE, "implementation"]])
    shared = shared[shared.groupby(CASE)["implementation"].transform("size") > 1]
    if shared.empty:
        return None
    here, there = (pd.concat([relative(group) for _, group in side.merge(shared).groupby("study")]) for side in sides)
    both = here.merge(there, on=[*CASE, "implementation"], suffixes=("", "_two"))
    first = both[(both["ratio"] == 1) & both["same_two"] | (both["ratio_two"] == 1) & both["same"]]
    order = _orders(here).merge(_orders(there), on=[*CASE, "implementation", "implementation_two"])
    order = order[(order["sign_x"] != 0) & (order["sign_y"] != 0)]
    means = both.groupby("implementation").agg(
        one=("ratio", geometric_mean), two=("ratio_two", geometric_mean), points=("ratio", "size")
    )
    return Carried(
        points=len(both[CASE].drop_duplicates()), fastest=len(first[CASE].drop_duplicates()), pairs=len(order),
        order=int((order["sign_x"] == order["sign_y"]).sum()),
        systems=means.reset_index().sort_values(["points", "one"], ascending=[False, True], kind="stable"),
        leads=_leads(here).merge(_leads(there)[[*CASE, "lead", "other", "tie"]], on=CASE, suffixes=("", "_two")),
    )  # fmt: skip


def _ranked(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The timed rows of the systems of all studies of the field, each in its best launch mode."""
    parts = [timed(frames[name], "best").assign(study=name) for name in STUDIES if name in frames]
    rows = pd.concat(parts) if parts else pd.DataFrame(columns=[*CASE, "implementation"])
    return rows[rows["implementation"] != LIMIT]


def _orders(rows: pd.DataFrame) -> pd.DataFrame:
    """Every two systems of a case, with `sign`: -1 if the first is faster, 1 if slower, 0 inside of the noise."""
    rows = rows.assign(apart=apart(rows))[[*CASE, "implementation", "p20_us", "p80_us", "apart"]]
    pairs = rows.merge(rows, on=CASE, suffixes=("", "_two"))
    pairs = pairs[pairs["implementation"] < pairs["implementation_two"]]
    faster = pairs["p80_us"] * pairs["apart"] < pairs["p20_us_two"]
    slower = pairs["p80_us_two"] * pairs["apart"] < pairs["p20_us"]
    return pairs.assign(sign=slower.astype(int) - faster.astype(int))[
        [*CASE, "implementation", "implementation_two", "sign"]
    ]


def _leads(rows: pd.DataFrame) -> pd.DataFrame:
    """The cases of `fast` with its `lead` in per cent over the best `other` system, and whether that is a `tie`."""
    parts = [against_best(group, peers(group)) for _, group in rows.groupby("study")]
    best = pd.concat(parts)
    return best.assign(lead=100 * (best["ratio"] - 1), tie=(best["low"] <= 1) & (best["high"] >= 1))
