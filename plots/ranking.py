"""Every system at every point: its latency over that of the fastest, and at what share of points it comes how near.

A map with a block of columns for each model, the mean over the skews in each cell; one hue, in steps that lie where
the differences are. Below, the performance profile: the share of points at which a system is so near to the fastest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.headline import geometric_mean, peers, relative
from tritonmoe_bench.experiments.analysis.names import (
    FAST,
    LIMIT,
    TILED,
    family_of,
    in_order,
    model_label,
    models_in_order,
)
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, lines, style

NAME = "ranking"
TITLE = "Every system's latency over that of the fastest"
STUDIES = ("headline",)
COLORS = LinearSegmentedColormap.from_list("slower", ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"])
STEPS = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 4)
"""From each of these factors on, a darker step; the last has no end."""
NORM = BoundaryNorm(STEPS, COLORS.N, extend="max")
ROW_IN, HEAD_IN, PROFILE_IN = 0.15, 0.45, 1.75
NEAR = 1.1
"""The factor of the sentence."""
REACH = 4
"""Where the profile ends."""
FRAME = {"boxstyle": "square,pad=0.1", "facecolor": "none", "edgecolor": style.INK, "lw": 1.1}
"""Around the number of a latency below the measured limit."""


def draw(results: Results) -> Figure:
    study = results.study("headline")
    rows = compare.plain(study.rows)
    best = relative(rows)
    if best.empty:
        raise study.lacks("timed row of a system other than the limit")
    names = ranked(best)
    shares = profile(rows, best)
    heights = [HEAD_IN + ROW_IN * len(names), PROFILE_IN]
    title = say("figures.j2", "ranking", **_sentence(best, shares))
    figure, (above, below) = layout.sheet(2, 1, sum(heights) / 2, title, height_ratios=heights)
    _map(above, rows, cells(best), names)
    named = leaders(shares)
    _profile(below, shares, named)
    notes = say(
        "figures.j2", "ranking_notes", dtype=rows["dtype"].iloc[0], framed=bool(best["below"].any()),
        skews=[f"{skew:g}" for skew in sorted(rows["skew"].unique())],
    )  # fmt: skip
    return layout.finish(
        figure, _handles(shares, named), caption.notes(study, notes, shown=rows), caption.source(study)
    )


def cells(best: pd.DataFrame) -> pd.DataFrame:
    """One row per system, model and tokens: the geometric mean of `ratio` over the skews, `same` if it is at each, and
    `below` if it is at any."""
    groups = best.groupby(["implementation", "model", "tokens"])
    return groups.agg(
        ratio=("ratio", lambda values: geometric_mean(values)), same=("same", "all"), below=("below", "any")
    )


def ranked(best: pd.DataFrame) -> list[str]:
    """Every system that was timed, the limit first, then those with the most points, among them by geometric mean."""
    means = np.exp(np.log(best["ratio"]).groupby(best["implementation"]).mean())
    points = best.groupby("implementation").size()
    names = [name for name in compare.systems(best) if name != LIMIT]
    names.sort(key=lambda name: (-points[name], means[name]))
    return [name for name in (LIMIT,) if name in points] + names


def profile(rows: pd.DataFrame, best: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By system: factors, and the share of all points of the study at which it is within each of the fastest.

    A point that it lacks counts as one where it is not."""
    points = rows["case_hash"].nunique()
    shares = {}
    for name, mine in best[best["implementation"] != LIMIT].groupby("implementation"):
        factors = np.sort(mine["ratio"].to_numpy())
        shares[str(name)] = (factors, np.arange(1, len(factors) + 1) / points)
    return shares


def within(shares: tuple[np.ndarray, np.ndarray], factor: float) -> float:
    """The share of points within a factor of the fastest, of one system of `profile`."""
    reached = shares[1][shares[0] <= factor]
    return float(reached[-1]) if len(reached) else 0.0


def _sentence(best: pd.DataFrame, shares: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """What the sentence says: of `fast`, or of the system that leads without it, and of the best peer."""
    ranks = best[best["implementation"] != LIMIT]
    first = FAST if FAST in shares else max(shares, key=lambda name: within(shares[name], 1))
    mine = ranks[ranks["implementation"] == first]
    rest = sorted((name for name in peers(ranks) if name != first), key=lambda name: -within(shares[name], NEAR))
    return {
        "first": style.look(first).label, "same": int(mine["same"].sum()), "points": int(ranks["case_hash"].nunique()),
        "near": 100 * (NEAR - 1), "second": style.look(rest[0]).label if rest else "",
        "share": 100 * within(shares[rest[0]], NEAR) if rest else 0.0,
    }  # fmt: skip


def _map(panel: Axes, rows: pd.DataFrame, table: pd.DataFrame, names: list[str]) -> None:
    models = models_in_order(rows["model"])
    columns = [
        (model, count) for model in models for count in sorted(rows.loc[rows["model"] == model, "tokens"].unique())
    ]
    known: dict[Any, Any] = {row.Index: row for row in table.itertuples()}
    panel.set_xlim(-0.5, len(columns) - 0.5)
    panel.set_ylim(len(names) - 0.5, -0.5)
    for y, name in enumerate(names):
        for x, (model, tokens) in enumerate(columns):
            cell = known.get((name, model, tokens))
            color: Any = "white"
            if cell is None:
                panel.text(x, y, "–", ha="center", va="center_baseline", color="#777777")
            else:
                color = "white" if name == LIMIT else COLORS(NORM(max(cell.ratio, 1)))
                _number(panel, x, y, cell, color, name)
            panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, edgecolor="white", lw=0.6, facecolor=color))
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
    _beside(panel, "tokens", 2)
    panel.tick_params(length=0)
    panel.grid(False)
    for side in panel.spines.values():
        side.set_visible(False)


def _beside(panel: Axes, text: str, above_pt: float, **style_of: Any) -> None:
    """Text over the systems' names, so many points above the cells."""
    panel.annotate(text, (0, 1), (-4, above_pt), xycoords="axes fraction", textcoords="offset points", ha="right",
                   va="bottom", **style_of)  # fmt: skip


def _number(panel: Axes, x: int, y: int, cell: Any, color: Any, name: str) -> None:
    text = f"{cell.ratio:.2f}" if cell.ratio < 9.995 else f"{cell.ratio:.0f}"
    panel.text(
        x, y, text, ha="center", va="center_baseline", color="white" if style.contrast(color) > 4 else style.INK,
        fontweight="bold" if cell.same and name != LIMIT else "normal", bbox=FRAME if cell.below else None,
    )  # fmt: skip


def leaders(shares: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """`fast` with weights as they are and in tiles, the serving engines, and the best of each other family: the
    lines of the profile that have names."""
    best: dict[str, str] = {}
    for name in in_order(shares):
        family = family_of(name)
        group = name if family == "serving" or name in (FAST, TILED) else family
        if group not in best or _near(shares[name]) > _near(shares[best[group]]):
            best[group] = name
    return list(best.values())


def _near(shares: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    return within(shares, NEAR), within(shares, REACH)


def _profile(panel: Axes, shares: dict[str, tuple[np.ndarray, np.ndarray]], named: list[str]) -> None:
    for name in in_order(shares):
        factors, reached = shares[name]
        inside = factors <= REACH
        x = [1, *factors[inside], REACH]
        y = [0, *reached[inside], reached[inside][-1] if inside.any() else 0]
        look = style.look(name)
        if name in named:
            width = 2 if name == FAST else 1.1
            panel.step(x, y, where="post", color=look.color, ls=look.linestyle, lw=width, label=look.label)
        else:
            panel.step(x, y, where="post", **lines.THIN)
    panel.set_xscale("log")
    panel.set_xlim(1, REACH)
    panel.set_ylim(0, 1.02)
    ticks = (1, 1.1, 1.2, 1.5, 2, 3, 4)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("within this factor of the fastest system")
    panel.set_ylabel("share of points")


def _handles(shares: dict[str, tuple[np.ndarray, np.ndarray]], named: list[str]) -> list[Artist]:
    looks = [style.look(name) for name in named]
    handles: list[Artist] = [
        Line2D([], [], color=look.color, ls=look.linestyle, lw=1.4, label=look.label) for look in looks
    ]
    return handles + ([lines.other_systems()] if set(shares) - set(named) else [])
