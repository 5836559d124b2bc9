"""How much of a kernel's gain arrives in a whole model: a decode step, and its experts alone, by system."""

from __future__ import annotations

import pandas as pd

from . import compare
from .names import FAST


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """`fast` against the system with the shortest step of each case, every system in its faster launch mode.

    Columns: model, tokens, p50_us, launch, experts_us, experts_share and peak_bytes of fast; the same of the other with
    `_other` behind, and its implementation as `other`; step, the other's step over that of fast; alone, the same of the
    experts alone. One row per case that both have, by model and tokens.
    """
    best = compare.timed(rows, "best")
    kept = ["case_hash", "implementation", "p50_us", "launch", "experts_us", "experts_share", "peak_bytes"]
    own = best.loc[best["implementation"] == FAST, ["model", "tokens", *kept]]
    others = compare.fastest_first(best[best["implementation"] != FAST]).drop_duplicates("case_hash")[kept]
    pairs = own.merge(others, on="case_hash", suffixes=("", "_other"))
    pairs = pairs.assign(
        other=pairs["implementation_other"],
        step=pairs["p50_us_other"] / pairs["p50_us"],
        alone=pairs["experts_us_other"] / pairs["experts_us"],
    )
    return pairs.sort_values(["model", "tokens", "case_hash"], kind="stable").reset_index(drop=True)
