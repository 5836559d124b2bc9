"""A sheet of how far `fast` is ahead of the best other system, point by point, and which system that is.

A panel for each model and weight format; in it a stem for each batch size and skew.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tritonmoe_bench.experiments.analysis import names
from tritonmoe_bench.experiments.analysis.headline import against_best, between_processes, between_runs, peers, standing
from tritonmoe_bench.experiments.analysis.names import FAST
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.reporting.texts import say

from . import caption, layout, style

ACROSS = 4
"""Panels side by side."""
APART = 0.17
"""Between the stems of two skews, where batch sizes are 1 apart."""


def sheet(study: Study, rows: pd.DataFrame, sentence: str, again: Study | None = None) -> Figure:
    """The figure of the rows, which are of that study and of one dtype and gating.

    sentence: its macro of figures.j2, which gets `standing`, the `formats` of the weights, the `noise` in per cent, and
    how many leads are `inside` of it. again: another run, which measured some of the points a second time.
    """
    study.require([FAST], peers(rows))
    best = against_best(rows, peers(rows))
    if best.empty:
        raise study.lacks("point at which both fast and another system were timed")
    best = best.assign(lead=100 * (best["ratio"] - 1))
    panels = sorted(set(zip(best["model"], best["quant"])), key=lambda key: (key[1], _place(key[0], best)))
    noise, repeats = between_runs(best, again.rows) if again else (0.0, 0)
    noise = 100 * max(noise, between_processes(study.record))
    inside = int((best["lead"].abs() <= noise).sum())
    title = say(
        "figures.j2", sentence, standing=standing(best), formats=sorted(set(best["quant"])), noise=noise, inside=inside
    )
    columns = min(ACROSS, len(panels))
    figure, axes = layout.sheet(-(-len(panels) // columns), columns, 1.75, title, used=len(panels), sharey=True)
    skews = sorted(best["skew"].unique())
    for index, (panel, (model, quant)) in enumerate(zip(axes, panels)):
        _stems(panel, best[(best["model"] == model) & (best["quant"] == quant)], skews)
        panel.axhspan(-noise, noise, color=style.BAND, lw=0, zorder=0.5)
        panel.axhline(0, color=style.INK, lw=0.8, zorder=1.5)
        panel.set_title(names.model_label(model) + ("" if quant == "none" else f", {quant}"))
        panel.set_xlabel("tokens")
        panel.grid(False, axis="x")
        if index % columns == 0:
            panel.set_ylabel("fast is faster than the\nbest other system by (%)")
    least, most = min(0.0, best["lead"].min()), max(5.0, best["lead"].max())
    axes[0].set_ylim(least - 0.06 * (most - least) - noise, most + 0.14 * (most - least))
    notes = say("figures.j2", "lead_notes", dtype=rows["dtype"].iloc[0], noise=noise, repeats=repeats)
    source = caption.source(study, again) if again and repeats else caption.source(study)
    return layout.finish(figure, _handles(best, skews, noise), caption.notes(study, notes), source)


def _place(model: str, rows: pd.DataFrame) -> int:
    return names.models_in_order(rows["model"]).index(model)


def _stems(panel: Axes, rows: pd.DataFrame, skews: list[float]) -> None:
    """A stem from 0 to each lead, with its mark of the best peer, its number, and a bar for p20 to p80 of both."""
    tokens = sorted(rows["tokens"].unique())
    for row in rows.itertuples():
        look, step = style.look(row.other), skews.index(row.skew) - (len(skews) - 1) / 2
        x = tokens.index(row.tokens) + 2 * APART * step
        panel.plot([x, x], [0, row.lead], color=look.color, lw=0.9)
        panel.plot([x, x], [100 * (row.low - 1), 100 * (row.high - 1)], color=style.INK, lw=0.6, zorder=2)
        panel.plot([x], [row.lead], marker=look.marker, ms=4.2, mfc=_filling(row.skew, look), color=look.color, ls="",
                   zorder=3)  # fmt: skip
        panel.annotate(f"{row.lead:.0f}", (x, max(row.lead, 0)), (0, 4), textcoords="offset points", ha="center")
    panel.set_xticks(range(len(tokens)), [str(count) for count in tokens])
    panel.set_xlim(-0.6, len(tokens) - 0.4)


def _filling(skew: float, look: style.Look) -> str:
    return "white" if skew else look.color


def _handles(best: pd.DataFrame, skews: list[float], noise: float) -> list[Artist]:
    how: dict[str, Any] = {"ls": "none", "ms": 4.2}
    handles: list[Artist] = []
    for name in names.in_order(best["other"]):
        look = style.look(name)
        handles.append(Line2D([], [], color=look.color, marker=look.marker, label=f"ahead of {look.label}", **how))
    for skew in skews if len(skews) > 1 else []:
        words = f"Zipf {skew:g}" if skew else "uniform routing"
        face = "white" if skew else style.INK
        handles.append(Line2D([], [], color=style.INK, marker="o", mfc=face, label=words, **how))
    if noise:
        handles.append(Patch(facecolor=style.BAND, label="noise"))
    return handles
