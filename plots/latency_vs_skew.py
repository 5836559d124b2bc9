"""Latency against skew: every system in its best launch mode, by batch size (rows) and expert count (columns)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout

NAME = "latency_vs_skew"
TITLE = "Latency against routing skew"
STUDIES = ("skew",)
MAX_COLUMNS, MAX_ROWS = 4, 3


def draw(results: Results) -> Figure:
    study = results.study("skew")
    every = compare.plain(study.rows)
    experts, tokens = spread(every["num_experts"], MAX_COLUMNS), spread(every["tokens"], MAX_ROWS)
    figure, axes = layout.sheet(len(tokens), len(experts), 1.55, TITLE, sharex=True, sharey="row")
    shown = every[every["num_experts"].isin(experts) & every["tokens"].isin(tokens)]
    best, missing = compare.timed(shown, "best"), compare.missing(shown)
    panels = []
    for index, panel in enumerate(axes):
        row, column = divmod(index, len(experts))
        count, batch = experts[column], tokens[row]

        def here(rows, count=count, batch=batch):
            return rows[(rows["num_experts"] == count) & (rows["tokens"] == batch)]

        for name in compare.systems(best):
            rows = here(best)
            rows = rows[rows["implementation"] == name].sort_values("skew")
            layout.plot_system(panel, name, rows["skew"], rows["p50_us"], rows["launch"] == "eager")
        panel.set_yscale("log")
        layout.log_labels(panel.yaxis)
        panel.set_title(f"{count} experts, {batch} tokens")
        panel.set_xticks(sorted(every["skew"].unique()))
        panel.xaxis.set_major_formatter("{x:g}")
        if row == len(tokens) - 1:
            panel.set_xlabel("Zipf exponent (0: uniform)")
        if column == 0:
            panel.set_ylabel("latency (µs)")
        panels.append((panel, here(missing), here(shown)["case_hash"].nunique()))
    layout.mark_missing(panels, "skew")
    layer = shown.iloc[0]
    notes = (
        f"{layer['dtype']}, hidden {layer['hidden_dim']}, ffn {layer['ffn_dim']}, top-{layer['top_k']}. "
        f"{layout.FASTER} The limit reads the weights of the active experts only."
    )
    handles = layout.legend_of(every["implementation"], missing)
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def spread(values, most: int) -> list[int]:
    """At most `most` of the values, the first and the last among them, evenly spread."""
    every = sorted(set(values))
    chosen = np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)
    return [int(every[index]) for index in chosen]
