"""What fusing saves by other ways to count bytes than the GPU's counters, and which tensors the bytes belong to.

All by the closed-form model, for real layers: every access that is issued, each address once a stage, and the latter
without weights. Below, the bytes of a forward by tensor, each address once a stage.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.names import FAST, PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.analysis.traffic import ACCOUNTINGS, TENSORS, grouped, savings, tokens_needed
from tritonmoe_bench.experiments.analysis.traffic_load import load
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, style

NAME = "traffic_accountings"
TITLE = "Memory traffic by other ways of counting, and by tensor"
STUDIES = ("traffic",)
MODEL = "model"
SHOWN = ("issued", "unique", "activations")
BARS = {UNFUSED: "unfused", PAPER: "fused", FAST: "fast"}
MOST_TOKENS = 512
"""Bars are of the largest batch up to this."""
REAL_HIDDEN = 1024
"""Smaller layers are shapes for tests."""
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


def draw(results: Results) -> Figure:
    traffic = load(results, MODEL)
    rows = traffic.rows[traffic.rows["implementation"].isin(list(BARS)) & (traffic.rows["hidden_dim"] >= REAL_HIDDEN)]
    rows = compare.plain(rows)
    saved = savings(rows).sort_values(["model", "tokens"])
    saved = saved[saved["accounting"].isin(SHOWN)]
    if saved.empty:
        raise traffic.lacks("model of both pipelines at a shape of a real layer")
    claimed, models = claim("memory-traffic")["saving"], names.models_in_order(saved["model"])
    early = dict(list(saved[saved["tokens"] <= MOST_TOKENS].groupby("accounting")["saving"]))
    most = max((early[name].max() for name in SHOWN[:2] if name in early), default=0.0)
    title = say("figures.j2", "traffic_accountings", claimed=claimed, until=MOST_TOKENS, early=early, most=most)
    figure, axes = layout.sheet(2, max(3, len(models)), 1.5, title)
    above, below = axes[: max(3, len(models))], axes[max(3, len(models)) :]
    for panel, accounting in zip(above, SHOWN):
        _savings(panel, saved[saved["accounting"] == accounting], claimed)
        panel.set_title(ACCOUNTINGS[accounting].replace(", without", ",\nwithout"))
        layout.power_axis(panel.xaxis, saved["tokens"], apart=8)
        panel.set_ylim(min(-2.0, 110 * saved["saving"].min()), 110 * max(claimed, saved["saving"].max()))
    above[0].set_ylabel("saved by fusing (%)")
    for spare in [*above[len(SHOWN) :], *below[len(models) :]]:
        spare.remove()
    seen: set[str] = set()
    for panel, model in zip(below, models):
        of_model = rows[(rows["model"] == model) & (rows["tokens"] <= MOST_TOKENS)]
        seen |= _bars(panel, of_model[of_model["tokens"] == of_model["tokens"].max()])
        panel.set_title(f"{names.model_label(model)}, {of_model['tokens'].max()} tokens")
    needed = [
        (names.model_label(model), tokens_needed(claimed, rows[rows["model"] == model].iloc[0])) for model in models
    ]
    notes = say("figures.j2", "traffic_accountings_notes", dtype=rows["dtype"].iloc[0], claimed=claimed, needed=needed)
    return layout.finish(figure, _handles(models, seen), notes, caption.source(*traffic.studies))


def _savings(panel: Axes, saved: pd.DataFrame, claimed: float) -> None:
    for model in names.models_in_order(saved["model"]):
        rows, (color, marker, line) = saved[saved["model"] == model], style.model_look(model)
        panel.plot(rows["tokens"], 100 * rows["saving"], color=color, marker=marker, ls=line)
    panel.axhline(100 * claimed, color=style.CLAIM, lw=1.2, ls=style.DASH)
    panel.axhline(0, color=style.INK, lw=0.6, zorder=1)
    panel.set_xlabel("tokens")


def _bars(panel: Axes, rows: pd.DataFrame) -> set[str]:
    """A bar per pipeline, stacked by group of tensors; returns the groups in it."""
    stacks = {name: grouped(rows[rows["implementation"] == name], "unique") for name in BARS}
    stacks = {name: stack for name, stack in stacks.items() if stack.sum()}
    most = max(stack.sum() for stack in stacks.values())
    unit, size = next((unit, size) for unit, size in UNITS if most >= size)
    seen: set[str] = set()
    for place, stack in enumerate(stacks.values()):
        start = 0.0
        for name, value in stack.items():
            _, color, hatch = TENSORS[str(name)]
            panel.barh(place, value / size, 0.7, start, color=color, hatch=hatch, edgecolor="#666666", linewidth=0.3)
            start += value / size
            seen.add(str(name))
    panel.set_yticks(range(len(stacks)), [BARS[name] for name in stacks])
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    panel.set_xlabel(f"bytes ({unit})")
    return seen


def _handles(models: list[str], seen: set[str]) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=color, marker=marker, ls=line, label=names.model_label(model))
        for model in models
        for color, marker, line in [style.model_look(model)]
    ]
    handles.append(Line2D([], [], color=style.CLAIM, lw=1.2, ls=style.DASH, label="the paper's claim"))
    for name in (name for name in TENSORS if name in seen):
        label, color, hatch = TENSORS[name]
        handles.append(Patch(facecolor=color, hatch=hatch, edgecolor="#666666", lw=0.4, label=label))
    return handles
