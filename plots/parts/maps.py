"""Maps of ratios: one cell per case, coloured by how far the ratio lies from 1, with the number in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import style

COLORS = LinearSegmentedColormap.from_list("ratio", ["#2166ac", "#a6cbe3", "#fbfbfb", "#f5b183", "#c0510c"])
STEPS = (1 / 2, 1 / 1.5, 1 / 1.2, 1 / 1.05, 1.05, 1.2, 1.5, 2)
"""Where the colour changes: beyond the ends it is full, in the middle it is none."""
NORM = BoundaryNorm(STEPS, COLORS.N, extend="both")
TIE = "≈"
"""Before a ratio that is 1 within the noise."""
FRAME_PT = 1.2
"""Of the line around what is below 1 beyond the noise, which colour alone does not show in greyscale."""


def legend(ratios: pd.DataFrame, above: str, below: str) -> list[Artist]:
    """Which side is the faster one above and below 1, and the mark of a tie: of these, what `draw_ratios` draws."""
    ahead, behind = ratios.loc[ratios["low"] > 1, "ratio"], ratios.loc[ratios["high"] < 1, "ratio"]
    handles: list[Artist] = []
    if len(ahead):
        color = COLORS(NORM(ahead.median()))
        handles.append(Patch(facecolor=color, label=f"above 1: {above} is faster"))
    if len(behind):
        color = COLORS(NORM(behind.median()))
        label = f"below 1, framed: {below} is faster"
        handles.append(Patch(facecolor=color, edgecolor=style.INK, lw=FRAME_PT, label=label))
    if len(ahead) + len(behind) < len(ratios):
        mark: dict[str, Any] = {"color": style.INK, "marker": f"${TIE}$", "mew": 0, "ms": 5, "ls": "none"}
        handles.append(Line2D([], [], label="the same within the noise", **mark))
    return handles


def draw_ratios(
    panel: Axes,
    grid: pd.DataFrame,
    ratios: pd.DataFrame,
    vertical: str,
    horizontal: str,
    order: Sequence[Any] | None = None,
) -> None:
    """Draws one cell per case of `grid`, by two of its columns, with the ratio of that case, a dash where it has none.

    A ratio that is 1 within the noise has `TIE` before it, and what is below 1 beyond the noise has a frame. ratios:
    case_hash, ratio, low and high, of `compare.ratios`; order: the values of the vertical axis from below, sorted if
    they are not given.
    """
    rows, columns = list(order or sorted(grid[vertical].unique())), sorted(grid[horizontal].unique())
    known = grid[["case_hash", vertical, horizontal]].drop_duplicates("case_hash")
    known = known.merge(ratios[["case_hash", "ratio", "low", "high"]], on="case_hash", how="left")
    table, low, high = (
        known.pivot(index=vertical, columns=horizontal, values=value)
        .reindex(index=rows, columns=columns)
        .to_numpy(dtype=float)
        for value in ("ratio", "low", "high")
    )
    panel.imshow(table, cmap=COLORS, norm=NORM, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(table):
        if np.isnan(value):
            panel.text(x, y, "–", ha="center", va="center", color="#777777")
            continue
        tie = TIE if low[y, x] <= 1 <= high[y, x] else ""
        dark = style.contrast(COLORS(NORM(value))) > 4
        panel.text(x, y, f"{tie}{value:.2f}", ha="center", va="center", color="white" if dark else style.INK)
    _frame(panel, high < 1)
    panel.grid(False)
    panel.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    panel.set_yticks(range(len(rows)), [str(value) for value in rows])
    panel.tick_params(length=0)


def _frame(panel: Axes, inside: np.ndarray) -> None:
    """A line around each group of cells that are inside."""
    padded = np.pad(inside, 1)
    for y, x in np.argwhere(inside):
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if not padded[y + 1 + down, x + 1 + right]:
                ends = np.array([-0.5, 0.5])
                xs, ys = x + (right / 2 if right else ends), y + (down / 2 if down else ends)
                panel.plot(*np.broadcast_arrays(xs, ys), color=style.INK, lw=FRAME_PT, solid_capstyle="projecting",
                           clip_on=False, zorder=3)  # fmt: skip
