"""A decode step of whole models in transformers against the batch, and the share of it that the experts take.

One column of panels per model.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.endtoend import gains
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout

NAME = "endtoend"
TITLE = "Decode of whole models in transformers, with these systems in the place of their experts"
STUDIES = ("endtoend",)


def draw(results: Results) -> Figure:
    study = results.study("endtoend")
    rows = compare.plain(study.rows)
    best = compare.timed(rows, "best")
    if best.empty:
        raise study.lacks("timed row")
    within = best["experts_share"] <= 1
    models, systems = names.models_in_order(rows["model"]), compare.systems(best)
    title = say("figures.j2", "endtoend", gains=gains(rows), shares=best.loc[within, "experts_share"])
    figure, grid = layout.sheet(2, len(models), 1.5, title, sharex=True, sharey="row")
    steps, shares = grid[: len(models)], grid[len(models) :]
    for above, below, model in zip(steps, shares, models):
        above.set_title(names.model_label(model))
        for name in systems:
            points = best[(best["model"] == model) & (best["implementation"] == name)].sort_values("tokens")
            layout.plot_system(above, name, points["tokens"], points["p50_us"] / 1e3, points["launch"] == "eager")
            parts = points[within[points.index]]
            layout.plot_system(below, name, parts["tokens"], 100 * parts["experts_share"], parts["launch"] == "eager")
        layout.power_axis(below.xaxis, rows["tokens"])
        below.set_xlabel("batch (sequences)")
    steps[0].set_yscale("log")
    layout.log_labels(steps[0].yaxis)
    shares[0].set_ylim(0, 105)
    steps[0].set_ylabel("decode step (ms)")
    shares[0].set_ylabel("experts' share\nof the step (%)")
    versions = sorted(rows["transformers"].dropna().unique())
    notes = say(
        "figures.j2",
        "endtoend_notes",
        dtype=rows["dtype"].iloc[0],
        versions=versions,
        launches=sorted(best["launch"].unique()),
        over=[_over(row) for row in best[~within].itertuples()],
    )
    return layout.finish(figure, layout.legend_of(systems), notes, caption.source(study))


def _over(row: Any) -> str:
    """A point whose experts by themselves took longer than the step did."""
    where = f"batch {row.tokens} on {names.model_label(row.model)}"
    return f"{names.label_of(row.implementation)} at {where} ({100 * row.experts_share:.0f} %, {row.launch})"
