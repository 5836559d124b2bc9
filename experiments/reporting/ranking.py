"""The report's ranking: per model and batch size the systems from fastest to slowest, the first five with their times.

All systems at all points are on the figure plots/ranking.py; twenty columns of a table could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import fastest_first, panel_rows, panels, timed
from ..analysis.names import LIMIT, model_label
from ..table.limits import below_limit
from .tables import Table, latency_text, share_text
from .texts import NOISE_MARK

PLACES = 5


def ranking_tables(frames: Mapping[str, pd.DataFrame]) -> list[Table]:
    """One table for each model, dtype and gating, from the study among `frames` that timed most systems there.

    A row for each batch size and skew: the five fastest, each in its best launch mode, and the others with their
    latency over the fastest one's.
    """
    ranked = {name: _ranked(frame) for name, frame in frames.items() if not frame.empty}
    if not ranked:
        return []
    tables = []
    for key in panels(pd.concat(ranked.values())):
        chosen = {name: panel_rows(rows, key) for name, rows in ranked.items()}
        study = max(chosen, key=lambda name: (chosen[name]["implementation"].nunique(), len(chosen[name])))
        tables.append(_table(key, study, chosen[study]))
    return tables


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    rows = timed(frame, "best")
    rows = rows[rows["implementation"] != LIMIT]
    return fastest_first(rows.assign(below=below_limit(rows)))


def _table(key: tuple[str, str, str], study: str, rows: pd.DataFrame) -> Table:
    model, dtype, gating = key
    systems, skewed = rows["implementation"].nunique(), rows["skew"].nunique() > 1
    places, more = min(PLACES, systems), systems > PLACES
    header = ["tokens", *["skew"] * skewed, *map(str, range(1, places + 1)), *["the others, x the fastest"] * more]
    table = Table(
        f"{model_label(model)}, {dtype}, {gating} ({systems} systems, study {study})", header,
        text=range(1 + skewed, len(header)),
    )  # fmt: skip
    for (skew, tokens), group in rows.groupby(["skew", "tokens"]):
        every: list[Any] = list(group.itertuples())
        fastest, first = every[0], every[:places]
        cells = [_cell(row, before) for row, before in zip(first, [None, *first])] + [""] * (places - len(first))
        others = ", ".join(f"{row.implementation} {row.p50_us / fastest.p50_us:.2f}" for row in every[places:])
        table.rows.append([str(tokens), *[f"{skew:g}"] * skewed, *cells, *[others] * more])
    return table


def _cell(row: Any, before: Any) -> str:
    mark = f"{NOISE_MARK} " if before is not None and row.p20_us <= before.p80_us else ""
    share = f", {share_text(row)}" if pd.notna(row.limit_us) else ""
    return f"{mark}{row.implementation} {latency_text(row.p50_us)} µs ({row.launch}{share})"
