"""What fusing saves of the bytes that DRAM moves, by hardware counters, and all that it moves over what it must."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.names import FAST, LIMIT, OWN_CODE, OWN_UNFUSED, PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.analysis.traffic import COUNTERS, savings, totals
from tritonmoe_bench.experiments.analysis.traffic_load import load
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, lines, style

NAME = "traffic"
TITLE = "Memory traffic: what fusing saves, and all of it over the compulsory bytes"
STUDIES = ("traffic",)
HEADLINE_TOKENS = 512
"""The largest batch of the paper's headline."""
BESIDE = 40
"""The axis of tokens goes on by this factor, for the names beside the last points."""
ROOM = 1.3
"""The panel of all bytes ends at this times the most of the lines: what other systems move above it is not shown."""


def draw(results: Results) -> Figure:
    traffic = load(results, COUNTERS)
    counted = compare.plain(totals(traffic.rows))
    rows = compare.plain(traffic.rows)
    own = not savings(rows, (OWN_CODE, OWN_UNFUSED)).empty
    fused, unfused = (OWN_CODE, OWN_UNFUSED) if own else (PAPER, UNFUSED)
    saved = savings(rows, (fused, unfused)).sort_values(["model", "tokens"])
    if saved.empty:
        raise traffic.lacks("forward of both pipelines by hardware counters")
    claimed = claim("memory-traffic")["saving"]
    shown = {unfused: ("unfused", style.DOT), fused: ("fused", "-"), FAST: ("fast", style.DASH)}
    title = say("figures.j2", "traffic", own=own, claimed=claimed, until=HEADLINE_TOKENS, **_extremes(saved))
    figure, (left, right) = layout.sheet(1, 2, 1.75, title, width=layout.COLUMN_IN, width_ratios=(1, 1.35))
    models = names.models_in_order(saved["model"])
    for model in models:
        color, marker, _ = style.model_look(model)
        here = saved[saved["model"] == model]
        left.plot(here["tokens"], 100 * here["saving"], color=color, marker=marker)
    left.axhline(100 * claimed, color=style.CLAIM, lw=1.2, ls=style.DASH)
    left.annotate(f"claimed: {100 * claimed:.0f} %", (0.04, 100 * claimed), (0, -2), xycoords=("axes fraction", "data"),
                  textcoords="offset points", va="top", color=style.CLAIM)  # fmt: skip
    left.axhline(0, color=style.INK, lw=0.6, zorder=1)
    least, most = 100 * saved["saving"].min(), 100 * max(claimed, saved["saving"].max())
    left.set_ylim(min(-1.5, 1.1 * least), 1.12 * most)
    left.set_title("saved by fusing (%)")
    _all_bytes(right, counted, models, shown)
    for panel in (left, right):
        layout.power_axis(panel.xaxis, counted["tokens"], apart=8)
        panel.set_xlabel("tokens")
    right.set_xlim(right=counted["tokens"].max() * BESIDE)
    notes = say("figures.j2", "traffic_notes", dtype=counted["dtype"].iloc[0])
    others = set(counted["implementation"]) - {*shown, LIMIT}
    return layout.finish(figure, _handles(models, len(others) > 0), notes, caption.source(*traffic.studies))


def _all_bytes(
    panel: Axes, counted: pd.DataFrame, models: list[str], lines_of: dict[str, tuple[str, style.Line]]
) -> None:
    """Bytes over the compulsory ones, of each model: by the systems that have a line, and by all others in grey."""
    shown = counted[counted["implementation"].isin(list(lines_of)) & counted["model"].isin(models)]
    others = counted[~counted["implementation"].isin([*lines_of, LIMIT])]
    for _, rows in others.groupby(["model", "implementation"]):
        rows = rows.sort_values("tokens")
        panel.plot(rows["tokens"], rows["over"], **lines.THIN)
    largest = shown[shown["tokens"] == shown["tokens"].max()]
    for name, (words, line) in lines_of.items():
        for model in models:
            color, marker, _ = style.model_look(model)
            rows = shown[(shown["model"] == model) & (shown["implementation"] == name)].sort_values("tokens")
            panel.plot(rows["tokens"], rows["over"], color=color, ls=line, marker=marker, ms=2.2)
        for _, row in largest[largest["implementation"] == name].sort_values("over").tail(1).iterrows():
            panel.annotate(words, (row["tokens"], row["over"]), (5, 0), va="center", textcoords="offset points",
                           color=style.model_look(str(row["model"]))[0])  # fmt: skip
    panel.axhline(1, color=style.INK, lw=0.6, zorder=1)
    panel.set_ylim(0, ROOM * max(1.0, shown["over"].max()))
    panel.set_title("all bytes / compulsory")


def _extremes(saved: pd.DataFrame) -> dict[str, Any]:
    """The largest saving up to the headline's batch and at any, and at how many tokens the latter is."""
    early = saved.loc[saved["tokens"] <= HEADLINE_TOKENS, "saving"]
    top = saved.sort_values("saving", kind="stable").iloc[-1]
    return {"early": max(early, default=None), "most": top["saving"], "tokens": int(top["tokens"])}


def _handles(models: list[str], others: bool) -> list[Artist]:
    looks = [(names.model_label(model), *style.model_look(model)) for model in models]
    handles: list[Artist] = [
        Line2D([], [], color=color, marker=marker, label=label) for label, color, marker, _ in looks
    ]
    return handles + ([lines.other_systems()] if others else [])
