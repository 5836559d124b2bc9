"""The report's table of the study `trace`: what each system spends beside the reading of the experts' weights."""

from __future__ import annotations

import pandas as pd

from ..analysis.compare import plain
from ..analysis.names import in_order, label_of, model_label, models_in_order
from ..analysis.trace import PARTS, parts
from .tables import Table


def trace_table(frame: pd.DataFrame) -> Table | None:
    """A line for each model and batch size: the reading, and for each system the times of routing, experts beyond the
    reading, and outputs, with their sum. None without a system beside `stream`."""
    if frame.empty:
        return None
    found = parts(plain(frame))
    if found.empty:
        return None
    systems = in_order(found["implementation"])
    table = Table("", ["model", "tokens", "reading", *map(label_of, systems)], text=(0,))
    for model in models_in_order(found["model"]):
        for tokens, here in found[found["model"] == model].groupby("tokens"):
            cells = {str(row["implementation"]): _cell(row) for _, row in here.iterrows()}
            table.rows.append([
                model_label(model), str(tokens), f"{here['reading'].iloc[0]:.1f}",
                *(cells.get(name, "-") for name in systems),
            ])  # fmt: skip
    return table


def _cell(row: pd.Series) -> str:
    times = [float(row[part]) for part in PARTS]
    return f"{' + '.join(f'{time:.1f}' for time in times)} = {sum(times):.1f} ({row['kernels']})"
