"""Throughput against tokens: every system in its best launch mode, one panel per model and dtype."""

from __future__ import annotations

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout

NAME = "throughput"
TITLE = "Throughput against batch size"
STUDIES = ("throughput",)


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    keys = compare.panels(study.rows)
    columns = min(3, len(keys))
    figure, axes = layout.sheet(-(-len(keys) // columns), columns, 1.75, TITLE, used=len(keys))
    best = compare.timed(study.rows, "best")
    missing = compare.missing(study.rows)
    for panel, key in zip(axes, keys):
        for name in compare.systems(best):
            rows = compare.panel_rows(best, key, name).sort_values("tokens")
            layout.plot_system(panel, name, rows["tokens"], rows["tokens_per_s"], rows["launch"] == "eager")
        panel.set_yscale("log")
        layout.power_axis(panel.xaxis, study.rows["tokens"])
        layout.log_labels(panel.yaxis, subs=(1,))
        panel.set_title(layout.panel_title(key))
        panel.set_xlabel("tokens")
        panel.set_ylabel("throughput (tokens/s)")
    layout.mark_missing(
        [
            (panel, compare.panel_rows(missing, key), compare.panel_rows(study.rows, key)["case_hash"].nunique())
            for panel, key in zip(axes, keys)
        ],
        "tokens",
    )
    handles = layout.legend_of(study.rows["implementation"], missing)
    return layout.finish(figure, handles, caption.text(study, layout.FASTER, missing))
