"""Every system at every point: its latency over that of the fastest, one panel per skew, a block of columns per model.

Each system has a row; rows are ranked by the geometric mean of the ratios, and names have the colour of their family.
This reads well with twenty systems and more, where lines no longer do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import LIMIT, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.table.limits import below_limit

from .parts import caption, layout, style

NAME = "ranking"
TITLE = "All systems, latency relative to the fastest at each point"
STUDIES = ("headline",)
COLORS = LinearSegmentedColormap.from_list("slower", ["#2f7d4f", "#a9d3a0", "#f7f3d8", "#f0b27a", "#b5482b"])
FULL_COLOR = 4
"""The ratio from which the colour is full."""
ROW_IN, HEAD_IN = 0.15, 0.62
"""Heights of a system's row, and of title, models and tokens above them."""
NORM = Normalize(0, np.log2(FULL_COLOR))
FRAME = {"boxstyle": "square,pad=0.1", "facecolor": "none", "edgecolor": style.INK, "lw": 1.1}
"""Around the number of a latency below the measured limit."""


def draw(results: Results) -> Figure:
    study = results.study("headline")
    rows = compare.plain(study.rows)
    best = relative(rows)
    names, skews = ranked(rows, best), sorted(rows["skew"].unique())
    height = HEAD_IN + ROW_IN * max(len(names), 1)
    figure, axes = layout.sheet(len(skews), 1, height, TITLE)
    for panel, skew in zip(axes, skews):
        _panel(panel, rows[rows["skew"] == skew], best[best["skew"] == skew], names)
        _beside(panel, f"Zipf {skew:g}" if skew else "uniform routing", 11, fontweight="bold")
    missing = compare.missing(rows[rows["implementation"] != LIMIT])
    notes = (
        f"{rows['dtype'].iloc[0]}, each system in its faster launch mode. In each cell: latency of the system / of the "
        "fastest there; bold: the fastest, or the same within the noise; framed: below the measured limit. Systems "
        "stand in the order of their geometric mean over the points that they have, those with the most points first. "
        f"Colours end at a factor of {FULL_COLOR}. The limit only reads the active experts' weights, and is not ranked."
    )
    handles = [Patch(facecolor=style.MISSING, hatch="////", edgecolor="white", label="missing: reason below")]
    return layout.finish(figure, handles if len(missing) else [], caption.text(study, notes, missing))


def relative(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the best launch mode with `ratio` to the fastest ranked system of their case, `same`: no slower than it
    beyond the noise, and `below`: below the measured limit. The limit has a ratio too, below 1, and is not ranked."""
    best = compare.timed(rows, "best")
    best = best.assign(below=below_limit(best))
    fastest = best[best["implementation"] != LIMIT].drop_duplicates("case_hash")
    fastest = fastest[["case_hash", "p50_us", "p80_us"]]
    best = best.merge(fastest, on="case_hash", suffixes=("", "_fastest"))
    return best.assign(
        ratio=best["p50_us"] / best["p50_us_fastest"], same=best["p20_us"] <= best["p80_us_fastest"]
    )  # fmt: skip


def ranked(rows: pd.DataFrame, best: pd.DataFrame) -> list[str]:
    """Every system of the rows, the limit first, then those with the most points, among them by geometric mean."""
    means = np.exp(np.log(best["ratio"]).groupby(best["implementation"]).mean())
    points = best.groupby("implementation").size()
    names = [name for name in compare.systems(rows) if name != LIMIT]
    names.sort(key=lambda name: (-points.get(name, 0), means.get(name, np.inf)))
    return [name for name in (LIMIT,) if name in set(rows["implementation"])] + names


def _panel(panel: Axes, rows: pd.DataFrame, best: pd.DataFrame, names: list[str]) -> None:
    models = models_in_order(rows["model"])
    columns = [
        (model, count) for model in models for count in sorted(rows.loc[rows["model"] == model, "tokens"].unique())
    ]
    cells: dict[tuple, Any] = {(row.implementation, row.model, row.tokens): row for row in best.itertuples()}
    panel.set_xlim(-0.5, len(columns) - 0.5)
    panel.set_ylim(len(names) - 0.5, -0.5)
    for y, name in enumerate(names):
        for x, (model, tokens) in enumerate(columns):
            cell = cells.get((name, model, tokens))
            look: dict[str, Any]
            if cell is None:
                look = {"facecolor": style.MISSING, "hatch": "////"}
            else:
                look = {"facecolor": "white" if name == LIMIT else COLORS(NORM(np.log2(max(cell.ratio, 1))))}
                _number(panel, x, y, cell, name)
            panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, edgecolor="white", lw=0.6, **look))
    for at in range(1, len(columns)):
        if columns[at][0] != columns[at - 1][0]:
            panel.axvline(at - 0.5, color=style.INK, lw=1.1)
    for model in models:
        places = [x for x, column in enumerate(columns) if column[0] == model]
        panel.annotate(
            model_label(model), (np.mean(places), 1), (0, 11), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="bottom",
        )  # fmt: skip
    panel.set_xticks(range(len(columns)), [str(tokens) for _, tokens in columns])
    panel.xaxis.tick_top()
    panel.set_yticks(range(len(names)), [style.look(name).label for name in names])
    for label, name in zip(panel.get_yticklabels(), names):
        label.set_color(style.look(name).color)
    _beside(panel, "tokens", 2)
    panel.tick_params(length=0)
    panel.grid(False)
    for side in panel.spines.values():
        side.set_visible(False)


def _beside(panel: Axes, text: str, above_pt: float, **style_of: Any) -> None:
    """Text over the systems' names, so many points above the cells."""
    panel.annotate(text, (0, 1), (-4, above_pt), xycoords="axes fraction", textcoords="offset points", ha="right",
                   va="bottom", **style_of)  # fmt: skip


def _number(panel: Axes, x: int, y: int, cell: Any, name: str) -> None:
    red, green, blue, _ = COLORS(NORM(np.log2(max(cell.ratio, 1))))
    dark = name != LIMIT and 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
    text = f"{cell.ratio:.2f}" if cell.ratio < 9.995 else f"{cell.ratio:.0f}"
    panel.text(
        x, y, text, ha="center", va="center_baseline", color="white" if dark else style.INK,
        fontweight="bold" if cell.same and name != LIMIT else "normal", bbox=FRAME if cell.below else None,
    )  # fmt: skip
