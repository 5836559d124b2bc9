"""The report's table of errors against float32, by system, and by dtype or weight format."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ..analysis.compare import systems
from ..analysis.decode import EXPERT, OUTPUT
from ..analysis.names import LIMIT, label_of
from .tables import Table

STUDIES = ("headline", "throughput", "decode", "quant")
DECODE = "decode"
"""Taken for the two ways to organise a small batch alone: its `fast` has rows in the others."""


def errors(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per case and system with an error, of these studies' rows; launch modes agree on the output, so the first
    one stands. Columns beside the rows' own: ratio, rel_error over torch_rel_error; kind, the dtype of weights of 16
    bits, and the format of others."""
    kept = [frame[(name != DECODE) | frame["implementation"].isin([OUTPUT, EXPERT])] for name, frame in frames.items()
            if len(frame)]  # fmt: skip
    if not kept:
        return pd.DataFrame()
    rows = pd.concat(kept, ignore_index=True)
    known = rows[(rows["status"] == "ok") & rows["rel_error"].notna() & rows["torch_rel_error"].notna()]
    known = known[known["implementation"] != LIMIT].drop_duplicates(["study", "case_hash", "implementation"])
    return known.assign(
        ratio=known["rel_error"] / known["torch_rel_error"],
        kind=known["dtype"].where(known["quant"] == "none", known["quant"]),
    )


def accuracy_table(frames: Mapping[str, pd.DataFrame]) -> Table | None:
    """`median (most)` of the error over PyTorch's own at the same points, by system and by dtype or format, with the
    number of points of each in the header; None without any."""
    known = errors(frames)
    if known.empty:
        return None
    packed = known["quant"] != "none"
    kinds = [*sorted(known.loc[~packed, "kind"].unique()), *sorted(known.loc[packed, "kind"].unique())]
    points = known.groupby("kind")["case_hash"].nunique()
    cells = {
        (str(name), str(kind)): f"{group['ratio'].median():.2f} ({group['ratio'].max():.2f})"
        for (name, kind), group in known.groupby(["implementation", "kind"])
    }
    body = [[label_of(name), *(cells.get((name, kind), "-") for kind in kinds)] for name in systems(known)]
    return Table("", ["system", *(f"{kind} ({points[kind]})" for kind in kinds)], body, text=(0,))
