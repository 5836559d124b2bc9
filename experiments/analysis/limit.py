"""Latencies beside the measured limit."""

from __future__ import annotations

import pandas as pd

from .names import LIMIT

BELOW_MARK = "‼"
"""Marks a latency below the measured limit, in tables and figures."""


def below_limit(rows: pd.DataFrame) -> pd.Series:
    """Whether a latency is below the measured limit of its case, beyond the noise: even its p80 is.

    Nothing can be faster than reading what it must read, so such a row is to be looked into: work was left out, the
    weights were not cold, or the limit was timed on a slower clock. The limit itself, and rows
    without one, are not.
    """
    if "limit_us" not in rows:
        return pd.Series(False, index=rows.index)
    return rows["limit_us"].notna() & (rows["p80_us"] < rows["limit_us"]) & (rows["implementation"] != LIMIT)
