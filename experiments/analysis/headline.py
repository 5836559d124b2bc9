"""The headline study as its figure and the report need it: `fast` against its peers and against the best of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from . import compare, names

SHAKY = 1.05
"""From this p80 over p20 on, a limit is marked: the clock moved while it was timed."""
FAST = "fast"
OWN = ("limit", "fast", "fastvariant", "paper")
"""Families that are no peers: the measured limit, and what this project wrote."""


def peers(rows: pd.DataFrame) -> list[str]:
    """Every system of the rows but the limit and our own families, in the order of all figures."""
    return [name for name in compare.systems(rows) if names.family_of(name) not in OWN]


def against_best(rows: pd.DataFrame, systems: list[str]) -> pd.DataFrame:
    """The rows of `compare.ratios` of `fast`, best launch mode each, over the fastest of the systems at each case."""
    return compare.to_best(compare.ratios(rows, FAST, systems, "best")).sort_values(
        ["model", "dtype", "skew", "tokens"]
    )


def geometric_mean(ratios: pd.Series) -> float:
    """Of positive ratios; at least one is needed."""
    return float(np.exp(np.log(ratios).mean()))


def counted(pairs: pd.DataFrame) -> str:
    """One sentence on the rows of `against_best`: geometric mean, and at how many points `fast` is ahead."""
    if pairs.empty:
        return f"No point has both {FAST} and a peer."
    ahead, behind = int((pairs["low"] > 1).sum()), int((pairs["high"] < 1).sum())
    return (
        f"Over {len(pairs)} points the speed of {FAST} over the best peer of each has the geometric mean "
        f"{geometric_mean(pairs['ratio']):.2f} ({pairs['ratio'].min():.2f}–{pairs['ratio'].max():.2f}); {FAST} is "
        f"ahead at {ahead}, behind at {behind}, and the same within the noise at {len(pairs) - ahead - behind}."
    )
