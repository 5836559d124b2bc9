"""Output-centric against expert-centric decode: their speed ratio, where they cross, and the error of both.

One column of panels per model.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.decode import EXPERT, OUTPUT, crossing, errors
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, style

NAME = "decode"
TITLE = "Decode organised by outputs against by experts"
STUDIES = ("decode",)


class Mark(NamedTuple):
    label: str
    color: str
    marker: str
    line: style.Line


RATIO = Mark("output-centric over expert-centric: speed, band p20 to p80", style.look("fast").color, "o", "-")
CROSSING = Mark("where they cross", style.INK, "D", "none")
ERRORS = {
    "output": Mark("error, output-centric", style.look("fast").color, "o", "-"),
    "expert": Mark("error, expert-centric", "#0b2f66", "s", style.DASH),
    "plain": Mark("error, PyTorch in 16 bits", style.GREY, "None", style.DOT),
}


def draw(results: Results) -> Figure:
    study = results.study("decode")
    study.require([OUTPUT], [EXPERT])
    rows = compare.plain(study.rows)
    models = names.models_in_order(rows["model"])
    pairs, table = compare.ratios(rows, OUTPUT, [EXPERT], "best"), errors(rows)
    missing = compare.missing(rows[rows["implementation"].isin([OUTPUT, EXPERT])])
    figure, grid = layout.sheet(2, len(models), 1.7, TITLE, sharex=True, sharey="row")
    above, below = grid[: len(models)], grid[len(models) :]
    lowest, highest = min([0.8, *pairs["low"]]), max([1.25, *pairs["high"]])
    for panel, model in zip(above, models):
        _speed(panel, pairs[pairs["model"] == model], lowest, highest)
        panel.set_title(names.model_label(model))
    for panel, model in zip(below, models):
        _error(panel, table[table["model"] == model])
        layout.power_axis(panel.xaxis, rows["tokens"])
        panel.set_xlabel("tokens")
    below[0].set_ylim(0, 1.15 * max([1e-9, *table["output"], *table["expert"], *table["plain"]]))
    above[0].set_ylabel("expert- / output-centric\nlatency (ratio)")
    below[0].set_ylabel("relative error\nagainst float32")
    layout.mark_missing(layout.by_model(above, models, rows, missing), "tokens")
    notes = (
        f"{rows['dtype'].iloc[0]}, one layer, CUDA graph. Above 1 the output-centric path is faster: each program "
        "reads the weights of its slot, so that tokens that share an expert read it again. Error: the norm of the "
        "difference to a float32 computation over its norm."
    )
    return layout.finish(figure, _handles(missing), caption.text(study, notes, missing))


def _speed(panel: Axes, pairs: pd.DataFrame, lowest: float, highest: float) -> None:
    pairs = pairs.sort_values("tokens")
    panel.fill_between(pairs["tokens"], pairs["low"], pairs["high"], color=RATIO.color, alpha=0.25, lw=0)
    panel.plot(pairs["tokens"], pairs["ratio"], color=RATIO.color, marker=RATIO.marker)
    panel.axhline(1, color=style.INK, lw=1.1, zorder=1.5)
    panel.set_yscale("log")
    panel.set_ylim(lowest / 1.15, highest * 1.25)
    layout.log_labels(panel.yaxis)
    tokens = crossing(pairs)
    if tokens is not None:
        panel.plot(
            [tokens], [1], color=CROSSING.color, marker=CROSSING.marker, mfc="white", ms=4.5, zorder=4, ls="none"
        )
        panel.annotate(f"{tokens:.1f} tokens", (tokens, 1), (4, 5), textcoords="offset points")


def _error(panel: Axes, table: pd.DataFrame) -> None:
    for column, mark in ERRORS.items():
        panel.plot(table["tokens"], table[column], color=mark.color, marker=mark.marker, ls=mark.line)
    panel.ticklabel_format(axis="y", style="plain")


def _handles(missing: pd.DataFrame) -> list[Artist]:
    lines = [
        Line2D([], [], color=mark.color, marker=mark.marker, ls=mark.line, mfc="white" if mark is CROSSING else None,
               label=mark.label)
        for mark in (RATIO, CROSSING, *ERRORS.values())
    ]  # fmt: skip
    return [*lines, *layout.missing_entry(missing)]
