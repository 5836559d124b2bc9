"""Speed-up of fusing gate, up and SiLU: latency of the unfused pipeline over that of the fused one, eager, by tokens."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import caption, data, layout, published, style

NAME = "fused_vs_unfused"
TITLE = "Fused against unfused (above 1: fused is faster)"
STUDIES = ("throughput",)
FUSED, UNFUSED = "paper_fused", "paper_unfused"
DTYPES = {"bf16": ("#8f2d00", "o", "-"), "fp16": ("#e69a3c", "s", style.DASH)}
STAR = {"color": "#1a1a1a", "marker": "*", "ms": 6.5, "mec": "white", "mew": 0.5, "ls": "none", "zorder": 5}


def draw(results: data.Results) -> Figure:
    study = results.study("throughput")
    rows = study.rows[study.rows["implementation"].isin([FUSED, UNFUSED])]
    models = list(dict.fromkeys((model, gating) for model, _, gating in data.panels(rows)))
    columns = min(3, len(models))
    figure, axes = layout.sheet(-(-len(models) // columns), columns, 1.6, TITLE, used=len(models), sharey=True)
    lacking = data.missing(rows, "eager")
    band = published.claim("fused-over-unfused")
    points = published.ratios("pipeline", "triton_unfused", "triton_fused")
    panels = []
    for panel, (model, gating) in zip(axes, models):
        panel.axhspan(band["low"], band["high"], color=style.BAND, lw=0, zorder=0.5)
        panel.axhline(1, color=style.INK, lw=0.7, zorder=0.6)
        for dtype, (color, marker, line) in DTYPES.items():
            pairs = data.ratios(data.panel_rows(rows, (model, dtype, gating)), FUSED, [UNFUSED], "eager")
            panel.fill_between(pairs["tokens"], pairs["low"], pairs["high"], color=color, alpha=0.25, lw=0)
            panel.plot(pairs["tokens"], pairs["ratio"], color=color, marker=marker, ls=line)
        mine = points[(points["model"] == model) & (points["tokens"] <= rows["tokens"].max())]
        panel.plot(mine["tokens"], mine["ratio"], **STAR)
        layout.power_axis(panel.xaxis, rows["tokens"], every=2)
        panel.set_title(style.model_label(model) + ("" if gating == "softmax" else f", {gating}"))
        panel.set_xlabel("tokens")
        panel.set_ylabel("unfused / fused (ratio)")
        panel.yaxis.set_tick_params(labelleft=True)
        here = lacking[(lacking["model"] == model) & (lacking["gating"] == gating)]
        panels.append((panel, here, rows.loc[rows["model"] == model, "case_hash"].nunique()))
    layout.mark_missing(panels, "tokens")
    notes = (
        "Latency of the unfused pipeline / latency of the fused one, both eager, with the same tiles and a schedule built "
        "on the host; shaded: what the 20th to 80th percentiles of both leave open. Band: "
        f"{band['low']:.2f} to {band['high']:.2f}, as the paper claims; stars: its own points."
    )
    handles: list = [
        Line2D([], [], color=color, marker=marker, ls=line, label=f"measured here, {dtype}")
        for dtype, (color, marker, line) in DTYPES.items()
        if dtype in set(rows["dtype"])
    ]
    handles += [Patch(color=style.BAND, label="the paper's claim"), Line2D([], [], **STAR, label=published.LABEL)]
    if len(lacking):
        handles.append(layout.missing_handle())
    return layout.finish(figure, handles, caption.text(study, notes, lacking))
