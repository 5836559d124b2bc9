"""A sheet of how far `fast` is ahead of the best other system, point by point, and which system that is.

A panel for each model and weight format; in it a stem for each batch size and skew. The models' own layers have a map,
in which each is a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from tritonmoe_bench.experiments.analysis import names
from tritonmoe_bench.experiments.analysis.headline import against_best, peers, standing
from tritonmoe_bench.experiments.analysis.names import FAST
from tritonmoe_bench.experiments.analysis.noise import APART, percents
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.reporting.texts import NOISE_MARK, say

from . import caption, layout, maps, style

STEMS_ACROSS = 42
"""So many stems side by side have room for their numbers."""
STEM = 0.42
"""Between the stems of two skews, where batch sizes are 1 apart."""
STEMS_IN = 1.75
MAP_IN, LINE_IN = 0.35, 0.15
"""Height of a map without its lines, and of a line."""
HEADROOM = 0.22
"""Above the longest stem, of the range of all: for its number, which may stand a line higher."""
MARK_PT = 4.2
"""Of the mark at the end of a stem."""
APART_PT = 1.5
"""Between two numbers side by side, which would read as one."""
MARK = 0.25
"""Where in a cell the mark of the best peer stands, to the right of the number in its middle."""


def sheet(studies: Sequence[Study], rows: pd.DataFrame, sentence: str) -> Figure:
    """The figure of the rows, which are of these studies and of one dtype.

    sentence: its macro of figures.j2, which gets `standing`, the `formats` of the weights, whether there are `native`
    layers, and the `noise` of each point in per cent.
    """
    for study in studies:
        study.require([FAST], peers(rows))
    best = against_best(rows, peers(rows))
    if best.empty:
        raise studies[0].lacks("point at which both fast and another system were timed")
    best = best.assign(lead=100 * (best["ratio"] - 1))
    noise = percents(best)
    native = best["layer"] == "native"
    title = say("figures.j2", sentence, standing=standing(best), formats=sorted({*best["quant"]} - {"none"}),
                native=bool(native.any()), noise=noise)  # fmt: skip
    stems, maps_of = _labelled(best[~native]), _labelled(best[native])
    columns = _columns(stems)
    panels, cells = list(dict.fromkeys(stems["label"])), list(dict.fromkeys(maps_of["label"]))
    down = -(-len(panels) // columns)
    heights = [STEMS_IN] * down + [MAP_IN + LINE_IN * len(cells)] * bool(cells)
    figure, axes = layout.sheet(len(heights), columns, sum(heights) / len(heights), title, height_ratios=heights)
    skews = sorted(stems["skew"].unique())
    for panel, label in zip(axes, panels):
        _stems(panel, stems[stems["label"] == label], skews)
        panel.set_title(label)
    _same_height(axes[: len(panels)], columns, stems["lead"], noise.max())
    if cells:
        grid = axes[0].get_gridspec()
        assert grid is not None
        _map(figure.add_subplot(grid[down, :]), maps_of, cells)
    for spare in axes[len(panels) :]:
        spare.remove()
    notes = say("figures.j2", "lead_notes", dtype=rows["dtype"].iloc[0], noise=noise, native=bool(cells))
    handles = [*_handles(best, skews, noise), *maps.legend(maps_of, FAST, "the best other system")]
    below = "\n".join(filter(None, [notes, *map(caption.lacking_text, studies)]))
    layout.finish(figure, handles, below, caption.source(*studies))
    _stagger(figure, axes[: len(panels)])
    return figure


def _labelled(best: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of panels, those in 16 bits first, each with the `label` of its panel or line."""
    models = names.models_in_order(best["model"])
    keys = best.assign(packed=best["quant"] != "none", place=best["model"].map(models.index))
    labels = [names.model_label(model) + (quant != "none") * f", {quant}" for model, quant in
              zip(best["model"], best["quant"])]  # fmt: skip
    return keys.assign(label=labels).sort_values(["packed", "quant", "place"], kind="stable")


def _columns(stems: pd.DataFrame) -> int:
    """As many panels as there are, or as their stems have room for side by side."""
    counts = stems.groupby("label").size()
    return min(max(1, min(4, STEMS_ACROSS // int(counts.max()))), len(counts)) if len(counts) else 1


def _map(panel: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    """A line for each label: how many times faster, with the mark of the best peer."""
    maps.draw_ratios(panel, rows, rows, "label", "tokens", labels[::-1])
    tokens = sorted(rows["tokens"].unique())
    for other, count, label in zip(rows["other"], rows["tokens"], rows["label"]):
        look, place = style.look(other), len(labels) - 1 - labels.index(label)
        panel.plot([tokens.index(count) + MARK], [place], marker=look.marker, ms=3.2, color=look.color, ls="none")
    panel.set_xlabel("tokens")


def _same_height(panels: Sequence[Axes], columns: int, leads: pd.Series, noise: float) -> None:
    """One scale for all panels of stems, written beside the first of each row."""
    least, most = min(0.0, *leads), max(5.0, *leads)
    for index, panel in enumerate(panels):
        panel.set_ylim(least - 0.06 * (most - least) - noise, most + HEADROOM * (most - least))
        panel.axhline(0, color=style.INK, lw=0.8, zorder=1.5)
        panel.set_xlabel("tokens")
        panel.grid(False, axis="x")
        panel.tick_params(labelleft=index % columns == 0)
        if index % columns == 0:
            panel.set_ylabel("fast is faster than the\nbest other system by (%)")


def _stems(panel: Axes, rows: pd.DataFrame, skews: list[float]) -> None:
    """A stem from 0 to each lead, with its number, marked if it is a tie, and the mark of the best peer, open where
    routing is skewed; behind them, the noise at each batch size."""
    tokens = sorted(rows["tokens"].unique())
    noise = 100 * (rows.groupby("tokens")[APART].max() - 1)
    panel.bar(range(len(tokens)), 2 * noise, width=1.0, bottom=-noise, color=style.BAND, lw=0, zorder=0.5)
    alone = ~rows["tokens"].duplicated(keep=False)
    ties = (rows["low"] <= 1) & (rows["high"] >= 1)
    columns = (rows[name] for name in ("other", "tokens", "skew", "lead"))
    for other, count, skew, lead, single, tie in zip(*columns, alone, ties):
        look = style.look(other)
        x = tokens.index(count) + (0 if single else STEM * (skews.index(skew) - (len(skews) - 1) / 2))
        panel.plot([x, x], [0, lead], color=look.color, lw=0.9)
        panel.plot([x], [lead], marker=look.marker, ms=MARK_PT, mfc="white" if skew else look.color, color=look.color,
                   ls="none", zorder=3)  # fmt: skip
        panel.annotate(
            NOISE_MARK * tie + percent(lead), (x, max(lead, 0)), (0, 4), textcoords="offset points", ha="center"
        )
    panel.set_xticks(range(len(tokens)), [str(count) for count in tokens])
    panel.set_xlim(-0.6, len(tokens) - 0.4)


def _stagger(figure: Figure, panels: Sequence[Axes]) -> None:
    """Lifts each number of a stem, from the lowest on, until it stands on no other and on no mark."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    half = MARK_PT / 2 * figure.dpi / 72
    for panel in panels:
        numbers = sorted((text for text in panel.texts if isinstance(text, Annotation)), key=lambda text: text.xy[1])
        leads = [
            np.asarray(line.get_path().vertices)[0] for line in panel.lines if line.get_marker() not in ("None", "")
        ]
        taken = [Bbox.from_extents(*(at - half), *(at + half)) for at in map(panel.transData.transform, leads)]
        for number in numbers:
            while any(number.get_window_extent(renderer).overlaps(box) for box in taken):
                number.xyann = (0, number.xyann[1] + 1)
            taken.append(number.get_window_extent(renderer).padded(APART_PT * figure.dpi / 72, 0))


def percent(lead: float) -> str:
    """A lead without decimals; a small one behind is 0 too."""
    return f"{round(lead)}"


def _handles(best: pd.DataFrame, skews: list[float], noise: pd.Series) -> list[Artist]:
    how: dict[str, Any] = {"ls": "none", "ms": MARK_PT}
    handles: list[Artist] = []
    for name in names.in_order(best["other"]):
        look = style.look(name)
        handles.append(Line2D([], [], color=look.color, marker=look.marker, label=f"against {look.label}", **how))
    for skew in skews if len(skews) > 1 else []:
        words = f"Zipf {skew:g}" if skew else "uniform routing"
        face = "white" if skew else style.INK
        handles.append(Line2D([], [], color=style.INK, marker="o", mfc=face, label=words, **how))
    return handles + ([Patch(facecolor=style.BAND, label="ties")] if noise.max() and len(best) else [])
