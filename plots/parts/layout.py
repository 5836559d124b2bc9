"""Sheets of panels, with the legend and the caption under them and never on the data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tritonmoe_bench.experiments.analysis.names import in_order, model_label

from . import style

WIDTH_IN = 7.0
"""Two columns of a paper; a panel of a row of two is one column wide."""
DPI = 220
"""Of the PNGs; text is measured at it too, as its width depends on it a little."""
PAD_IN = 0.06
FASTER = "Each system in its faster launch mode. Filled: CUDA graph; open: eager."
STRIP_IN = 0.085
"""Height of a row of missing points."""


def sheet(
    rows: int, columns: int, panel_height: float, title: str, *, used: int | None = None, **sharing: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, `panel_height` inches each; `used` of them, row by row, are kept."""
    style.apply()
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)
    figure = plt.figure(figsize=(WIDTH_IN, rows * panel_height + 0.25), layout=engine, dpi=DPI)
    axes = list(figure.subplots(rows, columns, squeeze=False, **sharing).flat)
    for spare in axes[used:] if used is not None else []:
        spare.remove()
    figure.suptitle(title, x=0.01, ha="left")
    return figure, axes[:used]


def finish(figure: Figure, handles: Sequence[Artist], caption: str) -> Figure:
    """Adds legend and caption under the panels and makes the figure as much taller as they need."""
    panels = figure.get_figheight()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width, dpi = figure.get_figwidth(), figure.dpi
    note = figure.text(PAD_IN / width, 0, caption, va="bottom", linespacing=1.25, color="#444444")
    for characters in range(170, 60, -2):
        note.set_text(
            "\n".join(textwrap.fill(line, characters, break_on_hyphens=False) for line in caption.splitlines())
        )
        extent = note.get_window_extent(renderer)
        if extent.width <= (width - 2 * PAD_IN) * dpi:
            break
    below = extent.height / dpi + 2 * PAD_IN
    legend_height = 0.0
    if handles:
        for columns in range(min(6, len(handles)), 0, -1):
            legend = figure.legend(handles=_by_row(handles, columns), loc="lower center", ncols=columns)
            extent = legend.get_window_extent(renderer)
            if extent.width <= width * dpi or columns == 1:
                break
            legend.remove()
        legend_height = extent.height / dpi
    height = panels + below + legend_height
    figure.set_figheight(height)
    note.set_y(PAD_IN / height)
    if handles:
        legend.set_bbox_to_anchor((0.5, below / height))
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, (below + legend_height) / height, 1, panels / height))
    return figure


def _by_row(handles: Sequence[Artist], columns: int) -> list[Artist]:
    """Reordered so that a legend, which fills column by column, reads row by row."""
    rows = -(-len(handles) // columns)
    full = len(handles) - (rows - 1) * columns
    order = [row * columns + column for column in range(columns) for row in range(rows if column < full else rows - 1)]
    return [handles[index] for index in order]


def plot_system(axes: Axes, name: str, x: Iterable[float], y: Iterable[float], eager: Iterable[bool] = ()) -> None:
    """The line of a system; points timed eagerly are drawn open, those in a CUDA graph filled."""
    look = style.look(name)
    x, y, eager = np.asarray(list(x)), np.asarray(list(y)), np.asarray(list(eager) or [False] * len(list(x)), bool)
    z = 3 if look.family in ("paper", "fast") else 2
    axes.plot(x, y, color=look.color, linestyle=look.linestyle, zorder=z, label=look.label)
    for opened, face in ((False, look.color), (True, "white")):
        chosen = eager == opened
        if chosen.any() and look.marker != "None":
            axes.plot(x[chosen], y[chosen], color=look.color, marker=look.marker, mfc=face, ls="none", zorder=z + 0.1)


def legend_of(names: Iterable[str], missing: pd.DataFrame) -> list[Artist]:
    """Legend entries of systems, in the order of all figures, and of missing points if there are any."""
    looks = [style.look(name) for name in in_order(names)]
    entries: list[Artist] = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label)
        for look in looks
    ]
    return entries + missing_entry(missing)


def missing_entry(missing: pd.DataFrame) -> list[Artist]:
    cross = Line2D([], [], color=style.INK, marker="x", ms=2.6, linestyle="none", label="missing: reason below")
    return [cross] if len(missing) else []


def by_model(
    axes: Sequence[Axes], models: Sequence[str], rows: pd.DataFrame, missing: pd.DataFrame
) -> list[tuple[Axes, pd.DataFrame, int]]:
    """What `mark_missing` takes, for one panel per model. rows: of the study, missing ones among them."""
    return [
        (panel, missing[missing["model"] == model], rows.loc[rows["model"] == model, "case_hash"].nunique())
        for panel, model in zip(axes, models)
    ]


def mark_missing(panels: Sequence[tuple[Axes, pd.DataFrame, int]], column: str) -> None:
    """Crossed-out markers at the bottom of each panel for the systems that have no timing there.

    panels: (axes, missing points, number of points that a system should have). A system that lacks some has a row of
    its own, with a mark at each place in `column`; those that lack all share one row. Call it last: the axes are
    lengthened so that the marks lie under all data, once for those that share a y axis.
    """
    some: dict[Axes, list[str]] = {}
    none: dict[Axes, list[str]] = {}
    for axes, missing, points in panels:
        lacking = missing["implementation"].value_counts()
        none[axes] = in_order(lacking[lacking >= points].index)
        some[axes] = in_order(lacking[lacking < points].index)
    rows = {axes: len(some[axes]) + bool(none[axes]) for axes in some}
    for figure in {axes.get_figure(root=True) for axes in rows}:
        assert figure is not None
        figure.draw_without_rendering()  # places the panels, whose heights are needed now
    lengthened: set[Axes] = set()
    for axes, missing, _ in panels:
        sharing = [other for other in rows if other is axes or axes.get_shared_y_axes().joined(axes, other)]
        box = axes.get_window_extent()
        strip, step = STRIP_IN * axes.figure.dpi / box.height, STRIP_IN * axes.figure.dpi / box.width
        room = strip * (max(rows[other] for other in sharing) + 0.3)
        if not rows[axes] and axes not in lengthened and room < strip:
            continue
        if axes not in lengthened:
            _lengthen(axes, room)
            lengthened.update(sharing)
        axes.add_patch(Rectangle((0, 0), 1, room, transform=axes.transAxes, color="#f2f2f2", lw=0, zorder=0.6))
        for index, name in enumerate(some[axes]):
            places = missing.loc[missing["implementation"] == name, column]
            _cross(axes, name, places, strip * (rows[axes] - index - 0.4), axes.get_xaxis_transform())
        if none[axes]:
            fit = len(none[axes]) <= (1 / step - 6.6) / 1.2
            words = "no point:" if fit else f"no point of {len(none[axes])} systems, named below"
            axes.text(step / 4, strip * 0.55, words, transform=axes.transAxes, va="center", color="#666666")
            for index, name in enumerate(none[axes] if fit else []):
                _cross(axes, name, [step * (6.6 + 1.2 * index)], strip * 0.6, axes.transAxes)


def _cross(axes: Axes, name: str, places: Iterable[float], height: float, transform: Any) -> None:
    look = style.look(name)
    places = list(places)
    for marker, color, size in ((look.marker, look.color, 3.6), ("x", style.INK, 2.6)):
        axes.plot(places, [height] * len(places), transform=transform, color=color, marker=marker, ms=size, mew=0.7,
                  mfc="white", ls="none", zorder=4, clip_on=False)  # fmt: skip


def _lengthen(axes: Axes, room: float) -> None:
    """Moves the lower end of the y axis down, so that what was all of the panel is all but `room` of it.

    Ticks below the old end stay unlabelled.
    """
    low, high = axes.get_ylim()
    labels = axes.yaxis.get_major_formatter()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, at: labels(value, at) if value >= low else ""))
    if axes.get_yscale() == "log":
        axes.set_ylim(low / (high / low) ** (room / (1 - room)), high)
    else:
        axes.set_ylim(low - (high - low) * room / (1 - room), high)


def power_axis(axis: Any, values: Iterable[float], apart: float = 4) -> None:
    """A log axis over the values, with ticks at those at least a factor `apart` from each other, the largest first."""
    ticks: list[float] = []
    values = sorted(set(values), reverse=True)
    for value in values:
        if not ticks or ticks[-1] >= apart * value:
            ticks.append(value)
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": (values[-1] / 1.35, values[0] * 1.35)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def log_labels(axis: Any, subs: Sequence[float] = (1, 2, 5)) -> None:
    """A log axis whose ticks are written as plain numbers, with k and M for thousands and millions."""
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """1500000 as 1.5M, 20000 as 20k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def panel_title(key: tuple[str, str, str]) -> str:
    """Model and dtype, and the gating where it is not the plain softmax that all systems run."""
    model, dtype, gating = key
    return f"{model_label(model)}, {dtype}" + ("" if gating == "softmax" else f", {gating}")
