"""The paper's two ratios of speed, with its own points: its pipeline over Megablocks, and fused over unfused.

A column for each of the paper's models; all launched eagerly, as the paper's pipeline and Megablocks wait for the host.
The paper's own code comes first: its rows, or what it reached in the measurement before this harness.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names, own_code
from tritonmoe_bench.experiments.analysis.names import OWN_CODE, OWN_UNFUSED, PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import OUR_NAMES, claim, ratios
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, paper_points, style

NAME = "paper_ratios"
TITLE = "The paper's pipeline over Megablocks, and fused over unfused"
STUDIES = ("throughput", "paper_code")
"""The second has the paper's own code, with Megablocks beside it."""
OVER_MEGABLOCKS, FUSED = "throughput-vs-megablocks", "fused-over-unfused"
DTYPES: dict[str, tuple[str, str, style.Line]] = {"bf16": ("#8f2d00", "o", "-"), "fp16": ("#c26a12", "s", style.DASH)}
OWN: dict[str, Any] = {"color": "#5c4300", "marker": "8", "ms": 4, "ls": style.DOT, "lw": 0.9, "zorder": 4}
EARLIER = OWN | {"mfc": "white"}
"""How the paper's own code looks in this run, and in the earlier measurement."""


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    rows = study.rows[(study.rows["gating"] == "softmax") & study.rows["model"].isin(OUR_NAMES.values())]
    paths = compare.family(rows, "megablocks")
    over, fused = compare.ratios(rows, PAPER, paths, "eager"), compare.ratios(rows, PAPER, [UNFUSED], "eager")
    if over.empty and fused.empty:
        raise study.lacks(f"eager rows of {PAPER} and of {UNFUSED} or Megablocks")
    own, earlier = own_points(results, rows["tokens"].max())
    title = say(
        "figures.j2", "paper_ratios", own=own["over_megablocks"].dropna(), own_fused=own["over_unfused"].dropna(),
        over=_as_of(own, compare.to_best(over)), fused=_as_of(own, fused),
        claimed=claim(OVER_MEGABLOCKS), claimed_fused=claim(FUSED),
    )  # fmt: skip
    models = names.models_in_order(pd.concat([over, fused])["model"])
    figure, axes = layout.sheet(2, len(models), 1.5, title, sharex=True, sharey="row")
    above, below = axes[: len(models)], axes[len(models) :]
    for panel, model in zip(above, models):
        for (path, dtype), group in over[over["model"] == model].groupby(["other", "dtype"]):
            look = style.look(str(path))
            panel.plot(group["tokens"], group["ratio"], color=look.color, ls=DTYPES[str(dtype)][2], marker=look.marker)
        _points(panel, own, model, "over_megablocks", earlier)
        _published(panel, OVER_MEGABLOCKS, ratios("vs_megablocks", "megablocks", "triton_fused"), model, rows)
        panel.set_yscale("log")
        panel.set_title(names.model_label(model))
    layout.log_labels(above[0].yaxis, subs=(1, 1.5, 2, 3, 5, 7))
    for panel, model in zip(below, models):
        for dtype, (color, marker, line) in DTYPES.items():
            pairs = fused[(fused["model"] == model) & (fused["dtype"] == dtype)]
            panel.fill_between(pairs["tokens"], pairs["low"], pairs["high"], color=color, alpha=0.25, lw=0)
            panel.plot(pairs["tokens"], pairs["ratio"], color=color, marker=marker, ls=line)
        _points(panel, own, model, "over_unfused", earlier)
        _published(panel, FUSED, ratios("pipeline", "triton_unfused", "triton_fused"), model, rows)
        layout.power_axis(panel.xaxis, rows["tokens"])
        panel.set_xlabel("tokens")
    above[0].set_ylabel("speed of the pipeline\nover Megablocks")
    below[0].set_ylabel("speed of fused\nover unfused")
    notes = say("figures.j2", "paper_ratios_notes", own=len(own), earlier=earlier,
                dtype=compare.plain(rows)["dtype"].iloc[0])  # fmt: skip
    handles = _handles(over, fused, own, earlier)
    studies = [study] if earlier else [study, results.study(STUDIES[1])]
    return layout.finish(figure, handles, caption.notes(study, notes), caption.source(*studies))


def own_points(results: Results, most: int) -> tuple[pd.DataFrame, bool]:
    """What the paper's own code reaches at uniform routing up to so many tokens, and whether it was measured earlier.

    Columns as of `own_code.speedups`; of the dtype that all systems run.
    """
    try:
        rows = compare.plain(results.study(STUDIES[1]).rows)
    except MissingStudy:
        rows = pd.DataFrame()
    if len(rows):
        rows = rows[(rows["skew"] == 0) & (rows["tokens"] <= most)]
        over = compare.to_best(compare.ratios(rows, OWN_CODE, compare.family(rows, "megablocks"), "eager"))
        fused = compare.ratios(rows, OWN_CODE, [OWN_UNFUSED], "eager")
        key = ["model", "tokens"]
        points = over[[*key, "ratio"]].merge(fused[[*key, "ratio"]], on=key, how="outer", suffixes=("_over", "_fused"))
        if len(points):
            points = points.rename(columns={"ratio_over": "over_megablocks", "ratio_fused": "over_unfused"})
            return points.sort_values(key), False
    points = own_code.speedups(results.device)
    return points[points["tokens"] <= most].sort_values(["model", "tokens"]), True


def _as_of(own: pd.DataFrame, pairs: pd.DataFrame) -> pd.Series:
    """The ratios of our rewrite in the dtype that all systems run, at the points of the paper's own code if it has
    some."""
    plain = compare.plain(pairs)
    return (plain.merge(own[["model", "tokens"]]) if len(own) else plain)["ratio"]


def _points(panel: Axes, own: pd.DataFrame, model: str, column: str, earlier: bool) -> None:
    points = own[(own["model"] == model) & own[column].notna()]
    panel.plot(points["tokens"], points[column], **(EARLIER if earlier else OWN))


def _published(panel: Axes, claim_id: str, points: pd.DataFrame, model: str, rows: pd.DataFrame) -> None:
    paper_points.draw_band(panel, claim_id)
    points = points[(points["model"] == model) & (points["tokens"] <= rows["tokens"].max())]
    panel.plot(points["tokens"], points["ratio"], **paper_points.STAR)


def _handles(over: pd.DataFrame, fused: pd.DataFrame, own: pd.DataFrame, earlier: bool) -> list[Artist]:
    looks = [style.look(path) for path in names.in_order(over["other"])]
    handles: list[Artist] = [
        Line2D([], [], color=look.color, marker=look.marker, label=f"over {look.label}") for look in looks
    ]
    for dtype, (color, marker, line) in DTYPES.items():
        if dtype in set(fused["dtype"]):
            handles.append(Line2D([], [], color=color, marker=marker, ls=line, label=f"fused over unfused, {dtype}"))
    if len(own):
        label = "the paper's own code" + (", measured earlier" if earlier else "")
        handles.append(Line2D([], [], **(EARLIER if earlier else OWN), label=label))
    return [*handles, *paper_points.handles()]
