"""Gather and scatter fused into the grouped GEMMs against a permute pass: their speed ratio, one panel per model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.fusion import FUSED, PERMUTED, process_noise
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, style

NAME = "fusion"
TITLE = "Routing fused into the GEMMs against a permute pass"
STUDIES = ("fusion",)
COLOR = style.look("fast").color


def draw(results: Results) -> Figure:
    study = results.study("fusion")
    study.require([FUSED], [PERMUTED])
    rows = compare.plain(study.rows)
    models = names.models_in_order(rows["model"])
    pairs = compare.ratios(rows, FUSED, [PERMUTED], "best")
    noise, repeats = process_noise(rows)
    missing = compare.missing(rows[rows["implementation"].isin([FUSED, PERMUTED])])
    figure, axes = layout.sheet(1, len(models), 1.9, TITLE, sharex=True, sharey=True)
    lowest, highest = min([0.95, 1 / noise, *pairs["low"]]), max([1.05, noise, *pairs["high"]])
    for panel, model in zip(axes, models):
        _ratios(panel, pairs[pairs["model"] == model].sort_values("tokens"))
        panel.axhspan(1 / noise, noise, color=style.BAND, lw=0, zorder=0.5)
        panel.axhline(1, color=style.INK, lw=1.1, zorder=1.5)
        panel.set_ylim(lowest - 0.3 * (highest - lowest), highest + 0.2 * (highest - lowest))
        layout.power_axis(panel.xaxis, rows["tokens"])
        panel.set_xlim(rows["tokens"].min() / 2, rows["tokens"].max() * 2)
        panel.set_title(names.model_label(model))
        panel.set_xlabel("tokens")
    axes[0].set_ylabel("permuted / fused latency (ratio)")
    layout.mark_missing(layout.by_model(axes, models, rows, missing), "tokens")
    band = (
        f"Band: the most by which two processes differ that time the same forward, {100 * (noise - 1):.1f} % over "
        f"{repeats} points."
        if repeats
        else "No forward was timed by two processes."
    )
    notes = (
        f"{rows['dtype'].iloc[0]}, the same tiles, CUDA graph. Above 1 fusing is faster. Bars: what p20 to p80 of both "
        f"leave open. {band}"
    )
    handles = [
        Line2D([], [], color=COLOR, marker="o", label="speed of fused over permuted"),
        *([Patch(facecolor=style.BAND, label="two processes, the same forward")] if repeats else []),
        *layout.missing_entry(missing),
    ]
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def _ratios(panel: Axes, pairs: pd.DataFrame) -> None:
    """The ratios with their bars, each printed at its point."""
    bars = [(pairs["ratio"] - pairs["low"]).clip(lower=0), (pairs["high"] - pairs["ratio"]).clip(lower=0)]
    panel.errorbar(pairs["tokens"], pairs["ratio"], yerr=bars, color=COLOR, marker="o", capsize=2, elinewidth=0.8)
    for tokens, ratio, high in zip(pairs["tokens"], pairs["ratio"], pairs["high"]):
        panel.annotate(f"{ratio:.2f}", (tokens, high), (0, 3), textcoords="offset points", ha="center")
