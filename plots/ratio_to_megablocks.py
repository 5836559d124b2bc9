"""Ratio to Megablocks against tokens: the paper's pipelines over each Megablocks path, with the paper's own points.

A column a model; a row a dtype and a way to compare: eager to eager, or each side in its faster launch mode.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import caption, data, layout, published, style

NAME = "ratio_to_megablocks"
TITLE = "Throughput relative to Megablocks (above 1: the paper's pipeline is faster)"
STUDIES = ("throughput",)
LAUNCHES = {"eager": "eager / eager", "best": "best / best"}
LINES = {"paper_fused": ("-", "full"), "paper_fused_graph": (style.DASH, "none")}
"""Line style and marker filling of each of our pipelines; the colour and marker are those of the Megablocks path."""


def draw(results: data.Results) -> Figure:
    study = results.study("throughput")
    keys = list(data.panels(study.rows))
    models = list(dict.fromkeys((model, gating) for model, _, gating in keys))
    kinds = [(dtype, launch) for dtype in dict.fromkeys(key[1] for key in keys) for launch in LAUNCHES]
    figure, grid = layout.sheet(len(kinds), len(models), 1.3, TITLE, sharex=True, sharey=True)
    paths = data.family(study.rows, "megablocks")
    ours = [name for name in LINES if name in set(study.rows["implementation"])]
    lacking = data.missing(study.rows)
    lacking = lacking[lacking["implementation"].isin([*paths, *ours])]
    panels = []
    for index, panel in enumerate(grid):
        (dtype, launch), (model, gating) = kinds[index // len(models)], models[index % len(models)]
        key = (model, dtype, gating)
        if key not in keys:
            panel.set_visible(False)
            continue
        rows = data.panel_rows(study.rows, key)
        for name in ours:
            _lines(panel, data.ratios(rows, name, paths, launch), name)
        _published(panel, model, rows["tokens"].max())
        layout.power_axis(panel.xaxis, study.rows["tokens"], every=2)
        panel.set_yscale("log")
        layout.log_labels(panel.yaxis, subs=(1, 2, 5))
        panel.set_title(layout.panel_title(key))
        panel.tick_params(labelbottom=True)
        if index % len(models) == 0:
            panel.set_ylabel(f"ratio, {LAUNCHES[launch]}")
            panel.yaxis.set_tick_params(labelleft=True)
        panel.set_xlabel("tokens")
        panels.append((panel, data.panel_rows(lacking, key), rows["case_hash"].nunique()))
    layout.mark_missing(panels, "tokens")
    band = published.claim("throughput-vs-megablocks")
    notes = (
        "Latency of Megablocks / latency of the pipeline. Eager / eager: both launched from the host; best / best: each "
        f"side in its faster launch mode. Band: {band['low']:.2f} to {band['high']:.2f}, as the paper claims up to its "
        "512 tokens; stars: its own points."
    )
    return layout.finish(figure, _handles(ours, paths, bool(len(lacking))), caption.text(study, notes, lacking))


def _lines(panel: Axes, pairs, name: str) -> None:
    line, filling = LINES[name]
    for path, group in pairs.groupby("peer"):
        look = style.look(str(path))
        panel.plot(group["tokens"], group["ratio"], color=look.color, ls=line, marker=look.marker, fillstyle=filling)


def _published(panel: Axes, model: str, most: int) -> None:
    band = published.claim("throughput-vs-megablocks")
    panel.axhspan(band["low"], band["high"], color=style.BAND, lw=0, zorder=0.5)
    panel.axhline(1, color=style.INK, lw=0.7, zorder=0.6)
    points = published.ratios("vs_megablocks", "megablocks", "triton_fused")
    points = points[(points["model"] == model) & (points["tokens"] <= most)]
    panel.plot(points["tokens"], points["ratio"], **STAR)


STAR = {"color": "#d0003c", "marker": "*", "ms": 6.5, "mec": "white", "mew": 0.5, "ls": "none", "zorder": 5}


def _handles(ours: list[str], paths: list[str], lacking: bool) -> list:
    handles: list = [
        Line2D([], [], color=style.look(path).color, marker=style.look(path).marker, label=f"over {style.look(path).label}")
        for path in paths
    ]
    handles += [
        Line2D([], [], color=style.GREY, ls=LINES[name][0], marker="o", fillstyle=LINES[name][1], label=style.look(name).label)
        for name in ours
    ]
    handles += [Patch(color=style.BAND, label="the paper's claim"), Line2D([], [], **STAR, label=published.LABEL)]
    return [*handles, layout.missing_handle()] if lacking else handles
