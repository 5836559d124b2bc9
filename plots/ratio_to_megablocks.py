"""Ratio to Megablocks against tokens: the paper's pipelines over each Megablocks path, with the paper's own points.

One column per model; one row per dtype and way to compare: both launched eagerly, or each in its faster launch mode.
"""

from __future__ import annotations

from typing import Literal

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import MEGABLOCKS
from tritonmoe_bench.experiments.analysis.published import ratios
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, paper_points, style

NAME = "ratio_to_megablocks"
TITLE = "Throughput relative to Megablocks (above 1: the paper's pipeline is faster)"
STUDIES = ("throughput",)
LAUNCHES = {"eager": "eager / eager", "best": "best / best"}
FillStyle = Literal["full", "none"]
CLAIM = "throughput-vs-megablocks"
LINES: dict[str, tuple[style.Line, FillStyle]] = {
    "paper_fused": ("-", "full"),
    "paper_fused_graph": (style.DASH, "none"),
}
"""Line style and marker filling of each of our pipelines; the colour and marker are those of the Megablocks path."""


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    keys = compare.panels(study.rows)
    models = list(dict.fromkeys((model, gating) for model, _, gating in keys))
    kinds = [(dtype, launch) for dtype in dict.fromkeys(key[1] for key in keys) for launch in LAUNCHES]
    figure, grid = layout.sheet(len(kinds), len(models), 1.35, TITLE, sharex=True, sharey="row")
    paths = compare.family(study.rows, "megablocks")
    study.require(LINES, paths or MEGABLOCKS)
    ours = [name for name in LINES if name in set(study.rows["implementation"])]
    lacking = compare.missing(study.rows)
    lacking = lacking[lacking["implementation"].isin([*paths, *ours])]
    panels = []
    for index, panel in enumerate(grid):
        (dtype, launch), (model, gating) = kinds[index // len(models)], models[index % len(models)]
        key = (model, dtype, gating)
        if key not in keys:
            panel.set_visible(False)
            continue
        rows = compare.panel_rows(study.rows, key)
        for name in ours:
            _lines(panel, compare.ratios(rows, name, paths, launch), name)
        _published(panel, model, rows["tokens"].max())
        layout.power_axis(panel.xaxis, study.rows["tokens"])
        panel.set_yscale("log")
        panel.set_title(layout.panel_title(key))
        panel.tick_params(labelbottom=True)
        if index % len(models) == 0:
            panel.set_ylabel(f"ratio, {LAUNCHES[launch]}")
            panel.yaxis.set_tick_params(labelleft=True)
        panel.set_xlabel("tokens")
        panels.append((panel, compare.panel_rows(lacking, key), rows["case_hash"].nunique()))
    for panel, _, _ in panels:
        low, high = panel.get_ylim()
        layout.log_labels(panel.yaxis, subs=(1, 1.5, 2, 3, 5) if high < 8 * low else (1, 2, 5))
    layout.mark_missing(panels, "tokens")
    notes = (
        "Latency of Megablocks / latency of the pipeline. Eager / eager: both launched from the host; best / best: "
        f"each side in its faster launch mode. {paper_points.band_text(CLAIM)}"
    )
    handles = [*_handles(ours, paths), *layout.missing_entry(lacking)]
    return layout.finish(figure, handles, caption.text(study, notes, lacking))


def _lines(panel: Axes, pairs: pd.DataFrame, name: str) -> None:
    line, filling = LINES[name]
    for path, group in pairs.groupby("other"):
        look = style.look(str(path))
        panel.plot(group["tokens"], group["ratio"], color=look.color, ls=line, marker=look.marker, fillstyle=filling)


def _published(panel: Axes, model: str, most: int) -> None:
    paper_points.draw_band(panel, CLAIM)
    points = ratios("vs_megablocks", "megablocks", "triton_fused")
    points = points[(points["model"] == model) & (points["tokens"] <= most)]
    panel.plot(points["tokens"], points["ratio"], **paper_points.STAR)


def _handles(ours: list[str], paths: list[str]) -> list[Artist]:
    looks = [style.look(path) for path in paths]
    handles: list[Artist] = [
        Line2D([], [], color=look.color, marker=look.marker, label=f"over {look.label}") for look in looks
    ]
    for name in ours:
        line, filling = LINES[name]
        label = style.look(name).label
        handles.append(Line2D([], [], color=style.GREY, ls=line, marker="o", fillstyle=filling, label=label))
    return [*handles, *paper_points.handles()]
