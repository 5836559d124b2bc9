"""Map of (model x skew): speed of tile heights chosen on the GPU over one height for all.

One column of panels per batch size; one row per fixed height, and one for the best of them at each point.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import DYNAMIC, FIXED, fixed_heights, model_label
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, maps

NAME = "dynamic_heights"
TITLE = "Tile heights chosen on the GPU over one height for all"
STUDIES = ("heights",)


def draw(results: Results) -> Figure:
    study = results.study("heights")
    rows = compare.plain(study.rows)
    heights = fixed_heights(rows["implementation"])
    study.require([DYNAMIC], heights or [f"{FIXED}<rows>"])
    tables = [(f"over {name.removeprefix(FIXED)} rows for all", _ratios(rows, [name])) for name in heights]
    if len(heights) > 1:
        tables.append(("over the best\nsingle height", _ratios(rows, heights)))
    tokens = sorted(rows["tokens"].unique())
    models = _by_experts(rows)
    figure, axes = layout.sheet(len(tables), len(tokens), 1.35, TITLE)
    for index, panel in enumerate(axes):
        row, column = divmod(index, len(tokens))
        words, table = tables[row]
        here = rows[rows["tokens"] == tokens[column]]
        maps.draw_ratios(panel, here, table, "model", "skew", order=list(models))
        panel.set_yticks(range(len(models)), list(models.values()) if column == 0 else [""] * len(models))
        if row == 0:
            panel.set_title(f"{tokens[column]} tokens")
        if row == len(tables) - 1:
            panel.set_xlabel("Zipf exponent")
        if column == 0:
            panel.set_ylabel(words)
    missing = compare.missing(rows[rows["implementation"].isin([DYNAMIC, *heights])])
    notes = (
        f"{rows['dtype'].iloc[0]}, CUDA graph, the same kernels and tile widths. In each cell: latency with the fixed "
        "height / latency with the heights chosen on the GPU from each block's rows. Line: where the ratio crosses 1. "
        f"{maps.ENDS}"
    )
    lacking = any(len(table) < rows["case_hash"].nunique() for _, table in tables)
    handles = maps.legend("the dynamic choice", "the fixed height", lacking)
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def _ratios(rows: pd.DataFrame, fixed: list[str]) -> pd.DataFrame:
    return compare.to_best(compare.ratios(rows, DYNAMIC, fixed, "best"))


def _by_experts(rows: pd.DataFrame) -> dict[str, str]:
    """Label of each model, those with the fewest experts first."""
    known = rows.drop_duplicates("model").sort_values(["num_experts", "model"])
    return {
        str(model): f"{model_label(str(model))}\n{experts} experts"
        for model, experts in zip(known["model"], known["num_experts"])
    }
