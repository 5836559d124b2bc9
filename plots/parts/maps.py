"""Maps of ratios: one cell per case, coloured by how far the ratio lies from 1, with the number in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Patch, Rectangle

from . import style

COLORS = LinearSegmentedColormap.from_list("ratio", ["#2166ac", "#a6cbe3", "#fbfbfb", "#f5b183", "#c0510c"])
FULL_COLOR = 2
"""The ratio, or one over it, from which the colour is full."""
NORM = Normalize(-np.log2(FULL_COLOR), np.log2(FULL_COLOR), clip=True)
ENDS = f"Colours end at a factor of {FULL_COLOR}."


def legend(above: str, below: str, missing: bool) -> list[Artist]:
    """Which side is the faster one where the ratio is above and below 1, and the hatch of missing cells if any are."""
    handles: list[Artist] = [
        Patch(facecolor=COLORS(0.85), label=f"above 1: {above} is faster"),
        Patch(facecolor=COLORS(0.15), label=f"below 1: {below} is faster"),
    ]
    if missing:
        handles.append(Patch(facecolor=style.MISSING, hatch="////", edgecolor="white", label="missing: reason below"))
    return handles


def draw_ratios(
    panel: Axes,
    grid: pd.DataFrame,
    ratios: pd.DataFrame,
    vertical: str,
    horizontal: str,
    order: Sequence[Any] | None = None,
) -> None:
    """Draws one cell per case of `grid`, by two of its columns, with the ratio of that case, hatched where it has none.

    ratios: case_hash and ratio; order: the values of the vertical axis from below, sorted if they are not given.
    """
    rows, columns = list(order or sorted(grid[vertical].unique())), sorted(grid[horizontal].unique())
    known = grid[["case_hash", vertical, horizontal]].drop_duplicates("case_hash")
    known = known.merge(ratios[["case_hash", "ratio"]], on="case_hash", how="left")
    values = known.pivot(index=vertical, columns=horizontal, values="ratio").reindex(index=rows, columns=columns)
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
    panel.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    panel.set_yticks(range(len(rows)), [str(value) for value in rows])
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
