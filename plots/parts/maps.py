"""Maps of ratios: one cell per case, coloured by how far the ratio lies from 1, with the number in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.patches import Patch

from . import style

COLORS = LinearSegmentedColormap.from_list("ratio", ["#2166ac", "#a6cbe3", "#fbfbfb", "#f5b183", "#c0510c"])
STEPS = (1 / 2, 1 / 1.5, 1 / 1.2, 1 / 1.05, 1.05, 1.2, 1.5, 2)
"""Where the colour changes: beyond the ends it is full, in the middle it is none."""
NORM = BoundaryNorm(STEPS, COLORS.N, extend="both")


def legend(ratios: pd.Series, above: str, below: str) -> list[Artist]:
    """Which side is the faster one where the ratio is above and below 1, of the sides that there are."""
    sides = (
        (ratios >= 1, Patch(facecolor=COLORS(NORM(1.3)), label=f"above 1: {above} is faster")),
        (ratios < 1, Patch(facecolor=COLORS(NORM(1 / 1.3)), label=f"below 1: {below} is faster")),
    )
    return [patch for some, patch in sides if some.any()]


def draw_ratios(
    panel: Axes,
    grid: pd.DataFrame,
    ratios: pd.DataFrame,
    vertical: str,
    horizontal: str,
    order: Sequence[Any] | None = None,
) -> None:
    """Draws one cell per case of `grid`, by two of its columns, with the ratio of that case, a dash where it has none.

    ratios: case_hash and ratio; order: the values of the vertical axis from below, sorted if they are not given.
    """
    rows, columns = list(order or sorted(grid[vertical].unique())), sorted(grid[horizontal].unique())
    known = grid[["case_hash", vertical, horizontal]].drop_duplicates("case_hash")
    known = known.merge(ratios[["case_hash", "ratio"]], on="case_hash", how="left")
    values = known.pivot(index=vertical, columns=horizontal, values="ratio").reindex(index=rows, columns=columns)
    table = values.to_numpy(dtype=float)
    panel.imshow(table, cmap=COLORS, norm=NORM, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(table):
        if np.isnan(value):
            panel.text(x, y, "–", ha="center", va="center", color="#777777")
            continue
        dark = style.contrast(COLORS(NORM(value))) > 4
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
