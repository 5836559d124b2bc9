"""What a forward costs beyond reading its weights, against tokens: `fast`, over weights as they are and in tiles, and
the fastest other system of each point.

A panel for each shape and weight format; uniform routing and the strongest skew.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.headline import against_best, peers, standing
from tritonmoe_bench.experiments.analysis.names import FAST, TILED
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, style

NAME = "granular"
TITLE = "Latency beyond the reading of the weights: few tokens, many small experts"
STUDIES = ("granular",)
OVER_TILES, OTHER = "fast over tiled weights", "best other system"
KINDS = {
    FAST: style.Look(FAST, "fast", "#c1002f", "*"),
    OVER_TILES: style.Look(OVER_TILES, "fast", "#b86e00", "D"),
    OTHER: style.Look(OTHER, "serving", "#00684a", "o"),
}
"""In the order of the legend."""


def draw(results: Results) -> Figure:
    study = results.study(NAME)
    rows = compare.plain(study.rows, formats=True)
    points = beyond(rows)
    if points.empty:
        raise study.lacks("latency of fast or of another system beside a measured limit")
    skews = sorted({points["skew"].min(), points["skew"].max()})
    kinds, pairs = set(points["kind"]), against_best(rows, peers(rows))
    typical = medians(points)
    shown = {kind: median for kind, median in typical.items() if kind != OVER_TILES or FAST not in typical}
    title = say("figures.j2", "granular", shown=shown, standing=standing(pairs))
    models = names.models_in_order(points["model"])
    panels = sorted(set(zip(points["quant"] != "none", points["model"], points["quant"])),
                    key=lambda panel: (panel[0], models.index(panel[1])))  # fmt: skip
    across = layout.across(len(panels))
    figure, axes = layout.sheet(-(-len(panels) // across), across, 1.4, title, used=len(panels), sharex=True)
    for index, (axis, (packed, model, quant)) in enumerate(zip(axes, panels)):
        here = points[(points["model"] == model) & (points["quant"] == quant)]
        _panel(axis, here, skews)
        axis.set_title(names.model_label(model) + packed * f", {quant}")
        layout.power_axis(axis.xaxis, points["tokens"])
        if index % across == 0:
            axis.set_ylabel("beyond reading\nthe weights (µs)")
    layout.bottom(axes, across, "tokens")
    notes = say(
        "figures.j2",
        "granular_notes",
        dtype=rows["dtype"].iloc[0],
        skews=[f"{skew:g}" for skew in sorted(points["skew"].unique())],
        tiled=None if OVER_TILES in shown else typical.get(OVER_TILES),
    )
    return layout.finish(
        figure, _handles(skews, kinds), caption.notes(study, notes, shown=points), caption.source(study)
    )


def beyond(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `fast`, over weights as they are and in tiles, and of the fastest other system of each case, the rows with a
    measured limit: `kind` is which of `KINDS`, `beyond` the latency less that of `stream`, in us."""
    timed = compare.timed(rows, "best")
    own, in_tiles = (timed[timed["implementation"] == name] for name in (FAST, TILED))
    others = compare.fastest_first(timed[timed["implementation"].isin(peers(timed))]).drop_duplicates("case_hash")
    parts = zip((own, in_tiles, others), KINDS)
    every = pd.concat([part.assign(kind=kind) for part, kind in parts], ignore_index=True)
    return every.assign(beyond=every["p50_us"] - every["stream_us"]).dropna(subset="beyond")


def medians(points: pd.DataFrame) -> dict[str, float]:
    """The median of `beyond` by kind, over the cases that all have; of what there is where none has all."""
    table = points.pivot(index="case_hash", columns="kind", values="beyond")
    table = table if table.dropna().empty else table.dropna()
    return {kind: float(table[kind].median()) for kind in KINDS if kind in table}


def _panel(axis: Axes, points: pd.DataFrame, skews: list[float]) -> None:
    for kind, look in KINDS.items():
        for skew in skews:
            line = points[(points["kind"] == kind) & (points["skew"] == skew)].sort_values("tokens")
            skewed = style.Look(look.label, look.family, look.color, look.marker, _line(skew, skews))
            layout.plot_line(axis, skewed, line["tokens"], line["beyond"], line["launch"] == "eager")
    axis.set_ylim(bottom=min(0.0, points["beyond"].min()))


def _line(skew: float, skews: list[float]) -> style.Line:
    return "-" if skew == skews[0] else style.DASH


def _handles(skews: list[float], kinds: set[str]) -> list[Artist]:
    handles: list[Artist] = [layout.legend_entry(look) for kind, look in KINDS.items() if kind in kinds]
    for skew in skews if len(skews) > 1 else []:
        words = f"Zipf {skew:g}" if skew else "uniform routing"
        handles.append(Line2D([], [], color=style.INK, ls=_line(skew, skews), label=words))
    return handles
