"""One table for each study that timed whole layers: a row for each point and GPU, a column for each system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import fastest_first, timed
from ..analysis.names import LIMIT, in_order, model_label, models_in_order
from ..analysis.noise import apart
from ..table.limits import BELOW_MARK, below_limit
from .tables import Table, latency_text
from .texts import NOISE_MARK

POINT = {
    "model": "model", "tokens": "tokens", "skew": "skew", "num_experts": "experts", "top_k": "top-k", "dtype": "dtype",
    "quant": "format", "gating": "gating", "routing": "routing", "gpu": "GPU",
}  # fmt: skip
"""The columns that tell points apart, and their heads; one with the same value everywhere is left out."""
ALWAYS = ("model", "tokens")
SHOWN = ("gpu", "case_hash", "implementation", "launch", "p50_us", "p20_us", "p80_us", "limit_us", "apart", "below")
"""The further columns that a point's cells are made of."""


def timed_layers(rows: pd.DataFrame) -> bool:
    """Whether the rows are latencies of whole layers."""
    whole = {"p50_us", "limit_us", "tokens", "launch"} <= set(rows) and "stage" not in rows
    return whole and bool(rows["p50_us"].notna().any())


def point_table(study: str, frames: Mapping[str, pd.DataFrame]) -> Table:
    """The table of a study, by GPU the rows of which are given; each system in its faster launch mode."""
    every = pd.concat([timed(rows, "best").assign(gpu=gpu) for gpu, rows in frames.items()])
    every = every.assign(below=below_limit(every), apart=apart(every))
    every = fastest_first(every[every["implementation"] != LIMIT])
    systems = in_order(every["implementation"])
    columns = [name for name in POINT if name in every and (name in ALWAYS or every[name].nunique() > 1)]
    text = [place for place, name in enumerate(columns) if name not in ("tokens", "skew", "num_experts", "top_k")]
    table = Table(study, [*(POINT[name] for name in columns), "fastest", "limit, µs", *systems],
                  text=(*text, len(columns)))  # fmt: skip
    models = models_in_order(every["model"])
    parts = ("gpu", "dtype", "quant", "gating", "num_experts", "skew", "tokens", "routing", "case_hash")
    order = [name for name in parts if name in every]
    ranked = every.assign(place=every["model"].map(models.index)).sort_values(["place", *order], kind="stable")
    for _, rows in ranked[list(dict.fromkeys([*columns, *SHOWN]))].groupby(["gpu", "case_hash"], sort=False):
        first = rows.iloc[0]
        cells = {str(row.implementation): _cell(row, first) for row in rows.itertuples()}
        where = [model_label(str(first[name])) if name == "model" else _value(first[name]) for name in columns]
        limit = latency_text(first["limit_us"]) if pd.notna(first["limit_us"]) else "-"
        table.rows.append([*where, first["implementation"], limit, *(cells.get(name, "-") for name in systems)])
    return table


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(row: Any, first: pd.Series) -> str:
    """A latency: marked where it is that of the fastest within the noise, below the limit, or launched eagerly."""
    same = row.implementation != first["implementation"] and row.p20_us <= first["p80_us"] * row.apart
    marks = (NOISE_MARK if same else "") + (BELOW_MARK if row.below else "")
    return f"{marks}{latency_text(row.p50_us)}{' e' if row.launch == 'eager' else ''}"
