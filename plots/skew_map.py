"""Map of (experts x skew): speed of the paper's pipelines relative to Megablocks, one panel a batch size.

A row of panels a comparison: the pipeline, the Megablocks path or the fastest of them, and the launch modes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from . import caption, data, layout, style

NAME = "skew_map"
TITLE = "Throughput relative to Megablocks, by experts and skew"
STUDIES = ("skew",)
COLORS = LinearSegmentedColormap.from_list("ratio", ["#2166ac", "#a6cbe3", "#fbfbfb", "#f5b183", "#c0510c"])
FULL_COLOR = 2
"""The ratio, or one over it, from which the colour is full."""
NORM = Normalize(-np.log2(FULL_COLOR), np.log2(FULL_COLOR), clip=True)


class Comparison(NamedTuple):
    """peer: a path, or empty for the fastest at each point; launch: eager to eager, or best to best."""

    system: str
    peer: str
    launch: str


COMPARISONS = (
    Comparison("paper_fused", "megablocks_sparse", "eager"),
    Comparison("paper_fused", "", "eager"),
    Comparison("paper_fused_graph", "", "best"),
)


def draw(results: data.Results) -> Figure:
    study = results.study("skew")
    every = data.plain(study.rows)
    names = set(every["implementation"])
    comparisons = [c for c in COMPARISONS if c.system in names and (not c.peer or c.peer in names)]
    if not comparisons:
        raise data.MissingStudy(
            f"{study.path} has no rows of the paper's pipelines: python experiments/sweep.py study=skew"
        )
    tokens = sorted(every["tokens"].unique())
    figure, axes = layout.sheet(len(comparisons), len(tokens), 1.95, TITLE)
    paths = data.family(every, "megablocks")
    tables = [data.to_best(data.ratios(every, c.system, [c.peer] if c.peer else paths, c.launch)) for c in comparisons]
    for index, panel in enumerate(axes):
        row, column = divmod(index, len(tokens))
        _map(panel, every[every["tokens"] == tokens[column]], tables[row])
        panel.set_title(f"{tokens[column]} tokens")
        panel.set_xlabel("Zipf exponent")
        if column == 0:
            panel.set_ylabel(_label(comparisons[row]) + "\nexperts")
    compared = [name for name in names if name in paths or name in {c.system for c in comparisons}]
    missing = data.missing(every[every["implementation"].isin(compared)])
    layer = every.iloc[0]
    notes = (
        f"{layer['dtype']}, hidden {layer['hidden_dim']}, ffn {layer['ffn_dim']}, top-{layer['top_k']}. In each cell: "
        "latency of Megablocks / latency of the pipeline; eager: both launched from the host, best: each side in its "
        "faster launch mode; best Megablocks: the fastest path at that point. Line: "
        f"where the ratio crosses 1. Colours end at a factor of {FULL_COLOR}."
    )
    handles = [
        Patch(facecolor=COLORS(0.85), label="above 1: the paper's pipeline is faster"),
        Patch(facecolor=COLORS(0.15), label="below 1: Megablocks is faster"),
    ]
    if any(len(table) < every["case_hash"].nunique() for table in tables):
        handles.append(Patch(facecolor=style.MISSING, hatch="////", edgecolor="white", label="missing: reason below"))
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def _label(comparison: Comparison) -> str:
    over = style.look(comparison.peer).label if comparison.peer else "best Megablocks"
    return f"{style.look(comparison.system).label}\nover {over}\n({comparison.launch} / {comparison.launch})"


def _map(panel: Axes, grid: pd.DataFrame, ratios: pd.DataFrame) -> None:
    experts, skews = sorted(grid["num_experts"].unique()), sorted(grid["skew"].unique())
    known = grid[["case_hash", "num_experts", "skew"]].drop_duplicates("case_hash")
    known = known.merge(ratios[["case_hash", "ratio"]], on="case_hash", how="left")
    values = known.pivot(index="num_experts", columns="skew", values="ratio").reindex(index=experts, columns=skews)
    table = values.to_numpy(dtype=float)
    panel.imshow(np.log2(table), cmap=COLORS, norm=NORM, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(table):
        if np.isnan(value):
            cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=style.MISSING, edgecolor="white", hatch="////", lw=0)
            panel.add_patch(cell)
            continue
        red, green, blue, _ = COLORS(NORM(np.log2(value)))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        panel.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if dark else style.INK)
    _border(panel, table)
    panel.grid(False)
    panel.set_xticks(range(len(skews)), [f"{skew:g}" for skew in skews])
    panel.set_yticks(range(len(experts)), [str(count) for count in experts])
    panel.tick_params(length=0)


def _border(panel: Axes, table: np.ndarray) -> None:
    """A line between neighbours on different sides of 1, which colour alone does not show in greyscale."""
    for (y, x), value in np.ndenumerate(table):
        for other, line in (
            ((y, x + 1), ((x + 0.5,) * 2, (y - 0.5, y + 0.5))),
            ((y + 1, x), ((x - 0.5, x + 0.5), (y + 0.5,) * 2)),
        ):
            inside = other[0] < table.shape[0] and other[1] < table.shape[1]
            if inside and not np.isnan([value, table[other]]).any() and (value >= 1) != (table[other] >= 1):
                panel.plot(*line, color=style.INK, lw=1.2, solid_capstyle="projecting")
