"""A sheet of how far `fast` is ahead of the best other system, point by point, and which system that is.

A panel for each model, weight format and kind of layer; in it a stem for each batch size and skew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tritonmoe_bench.experiments.analysis import names
from tritonmoe_bench.experiments.analysis.headline import against_best, peers, standing
from tritonmoe_bench.experiments.analysis.names import FAST
from tritonmoe_bench.experiments.analysis.noise import APART
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.reporting.texts import say

from . import caption, layout, style

STEMS_ACROSS = 42
"""So many stems side by side have room for their numbers."""
STEM = 0.42
"""Between the stems of two skews, where batch sizes are 1 apart."""


def sheet(studies: Sequence[Study], rows: pd.DataFrame, sentence: str) -> Figure:
    """The figure of the rows, which are of these studies and of one dtype.

    sentence: its macro of figures.j2, which gets `standing`, the `formats` of the weights, whether there are `native`
    layers, and the `noise` in per cent.
    """
    for study in studies:
        study.require([FAST], peers(rows))
    best = against_best(rows, peers(rows))
    if best.empty:
        raise studies[0].lacks("point at which both fast and another system were timed")
    best = best.assign(lead=100 * (best["ratio"] - 1))
    noise = 100 * (best[APART].max() - 1)
    title = say("figures.j2", sentence, standing=standing(best), formats=sorted({*best["quant"]} - {"none"}),
                native="native" in set(best["layer"]), noise=noise)  # fmt: skip
    models = names.models_in_order(best["model"])
    kinds = set(zip(best["layer"] == "native", best["quant"], best["model"]))
    panels = sorted(kinds, key=lambda panel: (*panel[:2], models.index(panel[2])))
    stems = int(best.groupby(["layer", "quant", "model"]).size().max())
    columns = min(max(1, min(4, STEMS_ACROSS // stems)), len(panels))
    figure, axes = layout.sheet(-(-len(panels) // columns), columns, 1.75, title, used=len(panels), sharey=True)
    skews = sorted(best["skew"].unique())
    for index, (panel, (native, quant, model)) in enumerate(zip(axes, panels)):
        here = (best["model"] == model) & (best["quant"] == quant) & ((best["layer"] == "native") == native)
        _stems(panel, best[here], skews)
        panel.axhspan(-noise, noise, color=style.BAND, lw=0, zorder=0.5)
        panel.axhline(0, color=style.INK, lw=0.8, zorder=1.5)
        panel.set_title(names.model_label(model) + (quant != "none") * f", {quant}" + native * ", native")
        panel.set_xlabel("tokens")
        panel.grid(False, axis="x")
        if index % columns == 0:
            panel.set_ylabel("fast is faster than the\nbest other system by (%)")
    least, most = min(0.0, best["lead"].min()), max(5.0, best["lead"].max())
    axes[0].set_ylim(least - 0.06 * (most - least) - noise, most + 0.14 * (most - least))
    own = any(native for native, *_ in panels)
    notes = say("figures.j2", "lead_notes", dtype=rows["dtype"].iloc[0], noise=noise, native=own)
    handles = _handles(best, skews, noise)
    below = "\n".join(filter(None, [notes, *(caption.below_text(study.rows) for study in studies)]))
    return layout.finish(figure, handles, below, caption.source(*studies))


def _stems(panel: Axes, rows: pd.DataFrame, skews: list[float]) -> None:
    """A stem from 0 to each lead, with its number and the mark of the best peer, open where routing is skewed."""
    tokens = sorted(rows["tokens"].unique())
    for other, count, skew, lead in zip(rows["other"], rows["tokens"], rows["skew"], rows["lead"]):
        look = style.look(other)
        x = tokens.index(count) + STEM * (skews.index(skew) - (len(skews) - 1) / 2)
        panel.plot([x, x], [0, lead], color=look.color, lw=0.9)
        panel.plot([x], [lead], marker=look.marker, ms=4.2, mfc="white" if skew else look.color, color=look.color,
                   ls="none", zorder=3)  # fmt: skip
        panel.annotate(percent(lead), (x, max(lead, 0)), (0, 4), textcoords="offset points", ha="center")
    panel.set_xticks(range(len(tokens)), [str(count) for count in tokens])
    panel.set_xlim(-0.6, len(tokens) - 0.4)


def percent(lead: float) -> str:
    """A lead without decimals; a small one behind is 0 too."""
    return f"{round(lead)}"


def _handles(best: pd.DataFrame, skews: list[float], noise: float) -> list[Artist]:
    how: dict[str, Any] = {"ls": "none", "ms": 4.2}
    handles: list[Artist] = []
    for name in names.in_order(best["other"]):
        look = style.look(name)
        handles.append(Line2D([], [], color=look.color, marker=look.marker, label=f"against {look.label}", **how))
    for skew in skews if len(skews) > 1 else []:
        words = f"Zipf {skew:g}" if skew else "uniform routing"
        face = "white" if skew else style.INK
        handles.append(Line2D([], [], color=style.INK, marker="o", mfc=face, label=words, **how))
    return handles + ([Patch(facecolor=style.BAND, label="ties")] if noise else [])
