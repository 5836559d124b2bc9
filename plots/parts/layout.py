"""Sheets of panels: a sentence above them, legend, notes and provenance under them, and nothing of it on the data."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tritonmoe_bench.experiments.analysis.names import in_order

from . import style

COLUMN_IN, WIDTH_IN = 3.4, 7.0
"""One column and two columns of a paper."""
DPI = 190
"""Of the PNGs of two columns; text is measured at it too, as its width depends on it a little."""
COLUMN_DPI = 300
"""Of the PNGs of one column, which pages show larger."""
PAD_IN = 0.05
SPARE = 0.93
"""Lines of text take so much of the width where they are measured, as they are up to 7 % wider at other resolutions."""


def sheet(
    rows: int,
    columns: int,
    panel_height: float,
    title: str,
    *,
    width: float = WIDTH_IN,
    used: int | None = None,
    **sharing: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, `panel_height` inches each; `used` of them, row by row, are kept.

    title: a sentence that says what the rows say. width: `WIDTH_IN`, or `COLUMN_IN` of a figure for one column.
    """
    style.apply()
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)
    dpi = COLUMN_DPI if width <= COLUMN_IN else DPI
    figure = plt.figure(figsize=(width, rows * panel_height), layout=engine, dpi=dpi)
    axes = list(figure.subplots(rows, columns, squeeze=False, **sharing).flat)
    for spare in axes[used:] if used is not None else []:
        spare.remove()
    # The engine centres a title that it places, and leaves one alone that has a place.
    figure.suptitle(title, x=PAD_IN / width, y=1, ha="left", va="top")
    return figure, axes[:used]


def across(panels: int) -> int:
    """How many panels a row of a figure with so many has: up to three, or four where that leaves fewer places empty."""
    return min(panels, min((3, 4), key=lambda width: -panels % width))


def bottom(axes: Sequence[Axes], columns: int, label: str) -> None:
    """Names and labels the x axis of each panel that has none below it; the panels share it."""
    for panel in axes[-columns:]:
        panel.set_xlabel(label)
        panel.xaxis.set_tick_params(labelbottom=True)


def finish(figure: Figure, handles: Sequence[Artist], notes: str, source: str) -> Figure:
    """Adds legend, notes and source under the panels, wraps all texts, and makes the figure as tall as they need.

    notes: how to read the figure, a paragraph a line, or nothing. source: provenance, in small print.
    """
    panels, width = figure.get_figheight(), figure.get_figwidth()
    title = figure._suptitle  # type: ignore[attr-defined]
    above = _wrap(figure, title, title.get_text(), even=True) + 2 * PAD_IN
    left = PAD_IN / width
    small = figure.text(left, 0, "", va="bottom", color="#666666", fontsize=style.SMALL_PT, linespacing=1.15)
    below = PAD_IN + _wrap(figure, small, source) + PAD_IN
    note = figure.text(left, 0, "", va="bottom", color="#444444", linespacing=1.2)
    note_height = _wrap(figure, note, notes) + 1.5 * PAD_IN if notes else 0.0
    legend = _legend(figure, handles)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    legend_height = legend.get_window_extent(renderer).height / figure.dpi if legend else 0.0
    under = below + note_height + legend_height
    height = above + panels + under
    figure.set_figheight(height)
    small.set_y(PAD_IN / height)
    note.set_y(below / height)
    title.set_y(1 - PAD_IN / height)
    if legend:
        legend.set_bbox_to_anchor((0.5, (below + note_height) / height))
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, under / height, 1, panels / height))
    return figure


def _wrap(figure: Figure, text: Text, words: str, even: bool = False) -> float:
    """Breaks the words into lines that fit into the figure; returns their height in inches. even: into lines of about
    one length, no more of them."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    room = SPARE * (figure.get_figwidth() - 2 * PAD_IN) * figure.dpi
    words = words.replace(" %", "\N{NO-BREAK SPACE}%")
    for characters in range(200, 20, -2):
        text.set_text(_filled(words, characters))
        if text.get_window_extent(renderer).width <= room:
            break
    lines = text.get_text().count("\n")
    narrower = range(characters, 20, -1) if even else ()
    fits = itertools.takewhile(lambda width: _filled(words, width).count("\n") == lines, narrower)
    text.set_text(_filled(words, min(fits, default=characters)))
    return text.get_window_extent(renderer).height / figure.dpi


def _filled(words: str, characters: int) -> str:
    return "\n".join(textwrap.fill(line, characters, break_on_hyphens=False) for line in words.splitlines())


def _legend(figure: Figure, handles: Sequence[Artist]) -> Any:
    """The legend in as many columns as fit, or None."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for columns in range(min(6, len(handles)), 0, -1):
        legend = figure.legend(handles=_by_row(handles, columns), loc="lower center", ncols=columns)
        room = SPARE * (figure.get_figwidth() - 2 * PAD_IN) * figure.dpi
        if columns == 1 or legend.get_window_extent(renderer).width <= room:
            return legend
        legend.remove()
    return None


def _by_row(handles: Sequence[Artist], columns: int) -> list[Artist]:
    """Reordered so that a legend, which fills column by column, reads row by row."""
    rows = -(-len(handles) // columns)
    full = len(handles) - (rows - 1) * columns
    order = [row * columns + column for column in range(columns) for row in range(rows if column < full else rows - 1)]
    return [handles[index] for index in order]


def plot_system(axes: Axes, name: str, x: Iterable[float], y: Iterable[float], eager: Iterable[bool] = ()) -> None:
    """The line of a system; points timed eagerly are drawn open, those in a CUDA graph filled."""
    plot_line(axes, style.look(name), x, y, eager)


def plot_line(
    axes: Axes, look: style.Look, x: Iterable[float], y: Iterable[float], eager: Iterable[bool] = (), **how: Any
) -> None:
    """A line that looks so; points timed eagerly are drawn open, those in a CUDA graph filled."""
    x, y, eager = np.asarray(list(x)), np.asarray(list(y)), np.asarray(list(eager), bool)
    eager = eager if eager.size else np.zeros(len(x), bool)
    z = 3.5 if look.family == "fast" else 3 if look.family == "paper" else 2.5
    axes.plot(x, y, color=look.color, linestyle=look.linestyle, zorder=z, label=look.label, **how)
    for opened, face in ((False, look.color), (True, "white")):
        chosen = eager == opened
        if chosen.any() and look.marker != "None":
            axes.plot(x[chosen], y[chosen], color=look.color, marker=look.marker, mfc=face, ls="none", zorder=z + 0.1)


def legend_of(names: Iterable[str]) -> list[Artist]:
    """Legend entries of systems, in the order of all figures."""
    return [legend_entry(style.look(name)) for name in in_order(names)]


def legend_entry(look: style.Look) -> Artist:
    return Line2D([], [], color=look.color, marker=look.marker, linestyle=look.linestyle, label=look.label)


def power_axis(axis: Any, values: Iterable[float], apart: float = 4) -> None:
    """A log axis over the values, with ticks at those at least a factor `apart` from each other, the largest first, and
    at 1 too where it is the least and has room."""
    ticks: list[float] = []
    values = sorted(set(values), reverse=True)
    for value in values:
        if not ticks or ticks[-1] >= apart * value:
            ticks.append(value)
    if values[-1] == 1 and ticks[-1] >= 2:
        ticks.append(1)
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
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
