"""Speed-up of fusing gate, up and SiLU, against tokens: latency of the unfused pipeline over the fused one, eager."""

from __future__ import annotations

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.names import PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import ratios
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, paper_points, style

NAME = "fused_vs_unfused"
TITLE = "Fused against unfused (above 1: fused is faster)"
STUDIES = ("throughput",)
CLAIM = "fused-over-unfused"
DTYPES: dict[str, tuple[str, str, style.Line]] = {"bf16": ("#8f2d00", "o", "-"), "fp16": ("#e69a3c", "s", style.DASH)}


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    study.require([PAPER], [UNFUSED])
    rows = study.rows[study.rows["implementation"].isin([PAPER, UNFUSED])]
    models = list(dict.fromkeys((model, gating) for model, _, gating in compare.panels(rows)))
    columns = min(3, len(models))
    figure, axes = layout.sheet(-(-len(models) // columns), columns, 1.6, TITLE, used=len(models), sharey=True)
    lacking = compare.missing(rows, "eager")
    points = ratios("pipeline", "triton_unfused", "triton_fused")
    panels = []
    for panel, (model, gating) in zip(axes, models):
        paper_points.draw_band(panel, CLAIM)
        for dtype, (color, marker, line) in DTYPES.items():
            pairs = compare.ratios(compare.panel_rows(rows, (model, dtype, gating)), PAPER, [UNFUSED], "eager")
            panel.fill_between(pairs["tokens"], pairs["low"], pairs["high"], color=color, alpha=0.25, lw=0)
            panel.plot(pairs["tokens"], pairs["ratio"], color=color, marker=marker, ls=line)
        mine = points[(points["model"] == model) & (points["tokens"] <= rows["tokens"].max())]
        panel.plot(mine["tokens"], mine["ratio"], **paper_points.STAR)
        layout.power_axis(panel.xaxis, rows["tokens"])
        panel.set_title(names.model_label(model) + ("" if gating == "softmax" else f", {gating}"))
        panel.set_xlabel("tokens")
        panel.set_ylabel("unfused / fused (ratio)")
        panel.yaxis.set_major_formatter("{x:.1f}")
        panel.yaxis.set_tick_params(labelleft=True)
        here = lacking[(lacking["model"] == model) & (lacking["gating"] == gating)]
        panels.append((panel, here, rows.loc[rows["model"] == model, "case_hash"].nunique()))
    layout.mark_missing(panels, "tokens")
    notes = (
        "Latency of the unfused pipeline / latency of the fused one, both eager, schedule built on the host; shaded: "
        f"what the 20th to 80th percentiles of both leave open. {paper_points.band_text(CLAIM)}"
    )
    handles: list[Artist] = [
        Line2D([], [], color=color, marker=marker, ls=line, label=f"measured here, {dtype}")
        for dtype, (color, marker, line) in DTYPES.items()
        if dtype in set(rows["dtype"])
    ]
    handles += [*paper_points.handles(), *layout.missing_entry(lacking)]
    return layout.finish(figure, handles, caption.text(study, notes, lacking))
