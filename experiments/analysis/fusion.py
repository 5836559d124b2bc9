"""The fusion study as its figure and its claim need it: routing fused into the GEMMs, or passes of its own."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .compare import ratios, timed
from .names import FAST

FUSED, PERMUTED = "fastvariant_gather", "fastvariant_permute"


def process_noise(frame: pd.DataFrame) -> tuple[float, int]:
    """(largest ratio, one or more, between two timings of the same forward in two processes; at how many points).

    `fast` is timed beside its variants, and runs the same forward as FUSED where it chooses the same tiles.
    """
    rows = timed(frame, "best")
    configs = rows.pivot_table(index="case_hash", columns="implementation", values="config", aggfunc="first")
    again = ratios(frame, FUSED, [FAST], "best")
    if again.empty:
        return 1.0, 0
    same = again["case_hash"].map(configs[FUSED]) == again["case_hash"].map(configs[FAST])
    apart = again.loc[same, "ratio"]
    return (float(np.exp(np.abs(np.log(apart)).max())), len(apart)) if len(apart) else (1.0, 0)
