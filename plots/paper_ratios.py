"""The paper's two ratios of speed, with its own points: its pipeline over Megablocks, and fused over unfused.

A column for each of the paper's models; all launched eagerly, as the paper's pipeline and Megablocks wait for the host.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names, own_code
from tritonmoe_bench.experiments.analysis.names import OWN_CODE, PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import OUR_NAMES, claim, ratios
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, paper_points, style

NAME = "paper_ratios"
TITLE = "The paper's pipeline over Megablocks, and fused over unfused"
STUDIES = ("throughput",)
OVER_MEGABLOCKS, FUSED = "throughput-vs-megablocks", "fused-over-unfused"
DTYPES: dict[str, tuple[str, str, style.Line]] = {"bf16": ("#8f2d00", "o", "-"), "fp16": ("#c26a12", "s", style.DASH)}
EARLIER: dict[str, Any] = {
    "color": "#5c4300", "marker": "8", "ms": 4, "mfc": "white", "ls": style.DOT, "lw": 0.9, "zorder": 4,
    "label": "the paper's own code, measured earlier",
}  # fmt: skip


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    rows = study.rows[(study.rows["gating"] == "softmax") & study.rows["model"].isin(OUR_NAMES.values())]
    paths = compare.family(rows, "megablocks")
    systems = [name for name in compare.systems(rows) if name.startswith(OWN_CODE)] + [PAPER]
    over = {name: compare.ratios(rows, name, paths, "eager") for name in systems}
    earlier = own_code.speedups(results.device)
    fused = compare.ratios(rows, PAPER, [UNFUSED], "eager")
    over = {name: pairs for name, pairs in over.items() if len(pairs)}
    if not over and fused.empty:
        raise study.lacks(f"eager rows of {PAPER} and of {UNFUSED} or Megablocks")
    title = say(
        "figures.j2", "paper_ratios", fused=fused["ratio"], over=next(iter(over.values()))["ratio"] if over else None,
        own=bool(over) and next(iter(over)) != PAPER, claimed=claim(OVER_MEGABLOCKS), claimed_fused=claim(FUSED),
        earlier=earlier,
    )  # fmt: skip
    models = names.models_in_order(pd.concat([*over.values(), fused])["model"])
    figure, axes = layout.sheet(2, len(models), 1.5, title, sharex=True, sharey="row")
    above, below = axes[: len(models)], axes[len(models) :]
    for panel, model in zip(above, models):
        for name, pairs in over.items():
            _over_megablocks(panel, pairs[pairs["model"] == model], name)
        _published(panel, OVER_MEGABLOCKS, ratios("vs_megablocks", "megablocks", "triton_fused"), model, rows)
        _earlier(panel, earlier[earlier["model"] == model], "over_megablocks", rows)
        panel.set_yscale("log")
        panel.set_title(names.model_label(model))
    layout.log_labels(above[0].yaxis, subs=(1, 1.5, 2, 3, 5))
    for panel, model in zip(below, models):
        for dtype, (color, marker, line) in DTYPES.items():
            pairs = fused[(fused["model"] == model) & (fused["dtype"] == dtype)]
            panel.fill_between(pairs["tokens"], pairs["low"], pairs["high"], color=color, alpha=0.25, lw=0)
            panel.plot(pairs["tokens"], pairs["ratio"], color=color, marker=marker, ls=line)
        _published(panel, FUSED, ratios("pipeline", "triton_unfused", "triton_fused"), model, rows)
        _earlier(panel, earlier[earlier["model"] == model], "over_unfused", rows)
        layout.power_axis(panel.xaxis, rows["tokens"])
        panel.set_xlabel("tokens")
    above[0].set_ylabel("speed of the pipeline\nover Megablocks")
    below[0].set_ylabel("speed of fused\nover unfused")
    notes = say("figures.j2", "paper_ratios_notes", earlier=len(earlier))
    return layout.finish(figure, _handles(over, fused, earlier), caption.notes(study, notes), caption.source(study))


def _over_megablocks(panel: Axes, pairs: pd.DataFrame, name: str) -> None:
    """A line for each Megablocks path and dtype; those of the paper's own code are thicker."""
    for (path, dtype), group in pairs.groupby(["other", "dtype"]):
        look = style.look(str(path))
        panel.plot(group["tokens"], group["ratio"], color=look.color, ls=DTYPES[str(dtype)][2], marker=look.marker,
                   lw=1.0 if name == PAPER else 1.8)  # fmt: skip


def _published(panel: Axes, claim_id: str, points: pd.DataFrame, model: str, rows: pd.DataFrame) -> None:
    paper_points.draw_band(panel, claim_id)
    points = points[(points["model"] == model) & (points["tokens"] <= rows["tokens"].max())]
    panel.plot(points["tokens"], points["ratio"], **paper_points.STAR)


def _earlier(panel: Axes, earlier: pd.DataFrame, column: str, rows: pd.DataFrame) -> None:
    """What the paper's own code reached in the measurement before this harness."""
    earlier = earlier[earlier["tokens"] <= rows["tokens"].max()].sort_values("tokens")
    panel.plot(earlier["tokens"], earlier[column], **EARLIER)


def _handles(over: dict[str, pd.DataFrame], fused: pd.DataFrame, earlier: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    for path in names.in_order(path for pairs in over.values() for path in pairs["other"]):
        look = style.look(path)
        handles.append(Line2D([], [], color=look.color, marker=look.marker, label=f"over {look.label}"))
    for name in over if len(over) > 1 else []:
        width = 1.0 if name == PAPER else 1.8
        handles.append(Line2D([], [], color=style.GREY, lw=width, label=style.look(name).label))
    for dtype in DTYPES:
        if dtype in set(fused["dtype"]):
            color, marker, line = DTYPES[dtype]
            handles.append(Line2D([], [], color=color, marker=marker, ls=line, label=f"fused over unfused, {dtype}"))
    if len(earlier):
        handles.append(Line2D([], [], **EARLIER))
    return [*handles, *paper_points.handles()]
