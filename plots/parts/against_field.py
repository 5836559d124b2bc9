"""A sheet of `fast` against the field: its speed over every other system against tokens.

A column of panels for each model, a row for each format of the weights and skew.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.headline import against_best, peers, standing
from tritonmoe_bench.experiments.analysis.names import FAST, LIMIT
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.reporting.texts import say

from . import caption, layout, style

RING: dict[str, Any] = {"marker": "o", "ms": 6.5, "mfc": "none", "mec": style.INK, "mew": 0.9, "ls": "none"}
BELOW = 0.86
"""Ratios of the best peers are printed at this times the lowest ratio of all."""
TICKS = (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 40, 100)


def sheet(study: Study, rows: pd.DataFrame, title: str) -> Figure:
    """The figure of the rows, which are of that study and of one dtype and gating."""
    models = names.models_in_order(rows["model"])
    kinds = sorted(set(zip(rows["quant"], rows["skew"])))
    others = [name for name in compare.systems(rows) if name not in (FAST, LIMIT)]
    study.require([FAST], others)
    field = peers(rows)
    pairs, best = compare.ratios(rows, FAST, others, "best"), against_best(rows, field)
    missing = compare.missing(rows)
    lowest, highest = min([1.0, *pairs["ratio"]]), max([2.0, *pairs["ratio"]])
    figure, grid = layout.sheet(len(kinds), len(models), 1.95, title, sharex=True, sharey=True)
    panels = []
    for index, panel in enumerate(grid):
        (quant, skew), model = kinds[index // len(models)], models[index % len(models)]

        def here(table: pd.DataFrame, quant: str = quant, skew: float = skew, model: str = model) -> pd.DataFrame:
            return table[(table["model"] == model) & (table["quant"] == quant) & (table["skew"] == skew)]

        for name in others:
            points = here(pairs)
            points = points[points["other"] == name].sort_values("tokens")
            layout.plot_system(panel, name, points["tokens"], points["ratio"])
        panel.plot(here(best)["tokens"], here(best)["ratio"], zorder=5, **RING)
        for tokens, ratio in zip(here(best)["tokens"], here(best)["ratio"]):
            panel.text(tokens, BELOW * lowest, f"{ratio:.2f}", ha="center", va="top", zorder=6)
        _axes(panel, rows["tokens"], lowest, highest)
        panel.set_title(f"{names.model_label(model)}\n{_routing(skew)}{'' if quant == 'none' else f', {quant}'}")
        if index // len(models) == len(kinds) - 1:
            panel.set_xlabel("tokens")
        if index % len(models) == 0:
            panel.set_ylabel("latency of system / of fast (ratio)")
        panels.append((panel, here(missing), here(rows)["case_hash"].nunique()))
    layout.mark_missing(panels, "tokens")
    dtype = rows["dtype"].iloc[0]
    notes = (
        f"{dtype}, each system in its faster launch mode. {say('field.j2', 'over_best_peer', standing=standing(best))} "
        "Peers are all systems but the limit and those written here (fast, paper)."
    )
    return layout.finish(figure, _handles(others, missing), caption.text(study, notes, missing))


def _axes(panel: Axes, tokens: pd.Series, lowest: float, highest: float) -> None:
    """Both log, with room under the lowest ratio for the printed ones, and beside the first and last of them."""
    layout.power_axis(panel.xaxis, tokens)
    panel.set_xlim(tokens.min() / 2, tokens.max() * 2)
    panel.set_yscale("log")
    panel.set_ylim(lowest * BELOW**3.5, highest * 1.25)
    layout.log_labels(panel.yaxis)
    panel.yaxis.set_major_locator(FixedLocator(TICKS))
    panel.axhline(1, color=style.INK, lw=1.1, zorder=1.5)


def _routing(skew: float) -> str:
    return f"Zipf {skew:g}" if skew else "uniform routing"


def _handles(others: list[str], missing: pd.DataFrame) -> list[Artist]:
    ring = Line2D([], [], **RING, label="best peer: its ratio is printed")
    *systems, last = layout.legend_of(others, missing)
    return [*systems, ring, last] if len(missing) else [*systems, last, ring]
