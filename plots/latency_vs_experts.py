"""Latency against expert count at equal total and equal active parameters, every system in its best launch mode."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout

NAME = "latency_vs_experts"
TITLE = "Latency against expert count"
STUDIES = ("experts",)


def draw(results: Results) -> Figure:
    study = results.study("experts")
    every = compare.plain(study.rows)
    tokens = sorted(every["tokens"].unique())
    figure, axes = layout.sheet(1, len(tokens), 2.2, TITLE, sharey=True)
    best, missing = compare.timed(every, "best"), compare.missing(every)
    shapes = every[["num_experts", "top_k"]].drop_duplicates("num_experts").sort_values("num_experts")
    panels = []
    for panel, batch in zip(axes, tokens):
        for name in compare.systems(best):
            rows = best[(best["tokens"] == batch) & (best["implementation"] == name)].sort_values("num_experts")
            layout.plot_system(panel, name, rows["num_experts"], rows["p50_us"], rows["launch"] == "eager")
        layout.power_axis(panel.xaxis, shapes["num_experts"])
        panel.set_xticks(shapes["num_experts"], [f"{e}\n({k})" for e, k in shapes.itertuples(index=False)])
        panel.set_yscale("log")
        layout.log_labels(panel.yaxis)
        panel.set_title(f"{batch} tokens")
        panel.set_xlabel("experts (top-k)")
        panels.append((panel, missing[missing["tokens"] == batch], len(shapes)))
    axes[0].set_ylabel("latency (µs)")
    layout.mark_missing(panels, "num_experts")
    layer = every.iloc[0]
    total = _span(every["num_experts"] * every["ffn_dim"])
    active = _span(every["top_k"] * every["ffn_dim"])
    notes = (
        f"{layer['dtype']}, hidden {layer['hidden_dim']}; experts x ffn {total}, top-k x ffn {active}. {layout.FASTER}"
    )
    handles = layout.legend_of(every["implementation"], missing)
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low} at every point" if low == high else f"from {low} to {high}"
