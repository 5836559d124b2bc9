"""The report's table of the study `trace`: what each system spends beside the reading of the experts' weights."""

from __future__ import annotations

import pandas as pd

from ..analysis.compare import plain
from ..analysis.names import in_order, label_of, model_label, models_in_order
from ..analysis.trace import PARTS, parts
from .tables import Table

APART_MARK = "‡"
"""In front of times whose sum is not the latency of the forward."""
VARYING = {"skew": "skew", "num_experts": "experts", "top_k": "top-k", "hidden_dim": "hidden", "ffn_dim": "ffn",
           "seed": "seed"}  # fmt: skip
"""What tells the cases of one model and batch size apart, and its head; what is the same in all of each model is left
out."""


def trace_table(frame: pd.DataFrame) -> Table | None:
    """A line for each case: the reading, and for each system the times of routing, experts beyond the reading, and
    outputs, with their sum. None without a system beside `stream`."""
    if frame.empty:
        return None
    found = parts(plain(frame))
    if found.empty:
        return None
    systems = in_order(found["implementation"])
    varying = [name for name in VARYING if found.groupby("model")[name].nunique().max() > 1]
    header = ["model", "tokens", *(VARYING[name] for name in varying), "reading", *map(label_of, systems)]
    table = Table("", header, text=(0,))
    for model in models_in_order(found["model"]):
        ordered = found[found["model"] == model].sort_values([*VARYING, "tokens"], kind="stable")
        for _, here in ordered.groupby(["tokens", *varying, "case_hash"], sort=False):
            cells = {str(row["implementation"]): _cell(row) for _, row in here.iterrows()}
            first = here.iloc[0]
            table.rows.append([
                model_label(model), str(first["tokens"]), *(f"{first[name]:g}" for name in varying),
                f"{first['reading']:.1f}", *(cells.get(name, "-") for name in systems),
            ])  # fmt: skip
    return table


def _cell(row: pd.Series) -> str:
    times = [float(row[part]) for part in PARTS]
    mark = APART_MARK if row["apart"] else ""
    return f"{mark}{' + '.join(f'{time:.1f}' for time in times)} = {sum(times):.1f} ({row['kernels']})"
