"""The five or six lines of a figure across systems: `fast`, the paper's pipeline, and the best of each kind of peer.

Every other system is a thin grey line: it shows the range, and the ranking tells it apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.names import FAST, LIMIT, OWN_CODE, PAPER

from . import layout, style

THIN: dict[str, Any] = {"color": style.GREY, "lw": 0.5, "zorder": 1.2}


class Kind(NamedTuple):
    """A line: the systems of which it shows the fastest at each point, and how it looks."""

    look: style.Look
    has: Callable[[str], bool]


KINDS = (
    Kind(style.Look("fast", "fast", "#c1002f", "*"), lambda name: name == FAST),
    Kind(
        style.Look("the paper's own code", "paper", "#5c4300", "8", style.DASH),
        lambda name: name == OWN_CODE,
    ),
    Kind(
        style.Look("the paper's pipeline, rewritten", "paper", "#e66100", "o", style.DASH), lambda name: name == PAPER
    ),
    Kind(
        style.Look("best serving engine", "serving", "#00684a", "P"),
        lambda name: names.family_of(name) == "serving",
    ),
    Kind(
        style.Look("best Megablocks path", "megablocks", "#2f6fc1", "^"),
        lambda name: names.family_of(name) == "megablocks",
    ),
    Kind(
        style.Look("best of PyTorch", "pytorch", "#8a5cc2", "<", style.DASHDOT),
        lambda name: names.family_of(name) == "pytorch",
    ),
)
"""In the order of the legend. Every one differs in marker or line too, for print without colour."""


def of(best: pd.DataFrame) -> dict[style.Look, pd.DataFrame]:
    """The rows of each kind that has any: those of its fastest system at each case. best: of `compare.timed`."""
    found = {}
    for look, has in KINDS:
        mine = best[best["implementation"].map(has).astype(bool)]
        if len(mine):
            found[look] = compare.fastest_first(mine).drop_duplicates(["run_id", "case_hash"])
    return found


def medians(best: pd.DataFrame, column: str) -> dict[str, float]:
    """The median of a column of each kind, by its label: over the cases that all kinds have, where there are any."""
    tables = of(best)
    shared = set.intersection(*(set(rows["case_hash"]) for rows in tables.values())) if tables else set()
    return {
        look.label: rows.loc[rows["case_hash"].isin(shared) | (not shared), column].median()
        for look, rows in tables.items()
    }


def draw(panel: Axes, best: pd.DataFrame, across: str, up: str, **how: float) -> None:
    """Draws two columns of the rows of one panel: the lines of `of` over every other system's."""
    for _, rows in best[best["implementation"] != LIMIT].groupby("implementation"):
        rows = rows.sort_values(across, kind="stable")
        panel.plot(rows[across], rows[up], **THIN)
    for look, rows in of(best).items():
        rows = rows.sort_values(across, kind="stable")
        layout.plot_line(panel, look, rows[across], rows[up], rows["launch"] == "eager", **how)


def handles(best: pd.DataFrame) -> list[Artist]:
    """The legend of what `draw` drew of the rows."""
    entries = [layout.legend_entry(look) for look in of(best)]
    alone = {name for _, rows in of(best).items() for name in rows["implementation"]}
    if set(best["implementation"]) - alone - {LIMIT}:
        entries.append(other_systems())
    return entries


def other_systems() -> Artist:
    """The legend entry of the thin lines."""
    return Line2D([], [], color=style.GREY, lw=0.8, label="every other system")
