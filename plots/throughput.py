"""Throughput against tokens as a share of the measured limit: a panel for each of the paper's models.

The dtype is the one that all systems run. Tokens/s stand above the panels, at the measured limit.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare, names, published
from tritonmoe_bench.experiments.analysis.names import LIMIT
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say
from tritonmoe_bench.experiments.table.limits import BELOW_MARK, below_limit

from .parts import caption, layout, lines, style

NAME = "throughput"
TITLE = "Throughput against tokens, as a share of the measured limit"
STUDIES = ("throughput",)
LABELLED = 3
"""Tokens above each panel at which the rate at the limit stands."""


def draw(results: Results) -> Figure:
    study = results.study("throughput")
    best = share_of_limit(compare.timed(compare.plain(study.rows), "best"))
    if best.empty:
        raise study.lacks("row with a latency and a measured limit")
    models = [model for model in names.models_in_order(best["model"]) if model in published.OUR_NAMES.values()]
    models = models or names.models_in_order(best["model"])
    best = best[best["model"].isin(models)]
    title = say("figures.j2", "throughput", shares=lines.medians(best, "share"))
    figure, axes = layout.sheet(
        -(-len(models) // 3), min(3, len(models)), 1.5, title, width=layout.COLUMN_IN, used=len(models), sharey=True
    )
    for panel, model in zip(axes, models):
        here = best[best["model"] == model]
        lines.draw(panel, here, "tokens", "share")
        for row in here[here["below"]].itertuples():
            panel.annotate(BELOW_MARK, (row.tokens, row.share), (0, 3), textcoords="offset points", ha="center")
        panel.axhline(1, color=style.INK, lw=1, ls=style.DOT)
        layout.power_axis(panel.xaxis, here["tokens"], apart=16)
        panel.set_title(names.model_label(model), pad=12)
        panel.set_xlabel("tokens")
        _rates(panel, here)
    axes[0].set_ylim(0, 1.03 * max([1.0, *best.loc[best["below"], "share"]]))
    axes[0].set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"])
    axes[0].set_ylabel("% of the\nmeasured limit")
    axes[0].annotate("tok/s", (0, 1), (-3, 2), xycoords="axes fraction", textcoords="offset points", ha="right",
                     va="bottom", color="#555555")  # fmt: skip
    notes = say("figures.j2", "throughput_notes", dtype=best["dtype"].iloc[0], other=_best_other(best))
    notes = caption.notes(study, notes, shown=best)
    return layout.finish(figure, lines.handles(best), notes, caption.source(study))


def share_of_limit(best: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a limit, with `share`, the limit over the latency, and `below`: faster than it."""
    known = best[best["limit_us"].notna() & (best["implementation"] != LIMIT)]
    return known.assign(share=known["limit_us"] / known["p50_us"], below=below_limit(known))


def _best_other(best: pd.DataFrame) -> tuple[str, float] | None:
    """Of the systems that no line in colour is made of, the one with the largest median share, and that."""
    thin = best[~best["implementation"].map(lambda name: any(has(name) for _, has in lines.KINDS))]
    medians = thin.groupby("implementation")["share"].median()
    return (style.look(str(medians.idxmax())).label, float(medians.max())) if len(medians) else None


def _rates(panel: Axes, rows: pd.DataFrame) -> None:
    """Tokens/s at the limit, above the first, the middle and the last batch size."""
    limits = rows.drop_duplicates("tokens").sort_values("tokens")
    places = sorted({round(step * (len(limits) - 1) / (LABELLED - 1)) for step in range(LABELLED)})
    for place, side in zip(places, ("left", "center", "right")):
        row = limits.iloc[place]
        rate = layout.short(float(f"{row['tokens'] / row['limit_us'] * 1e6:.2g}"))
        at = {"left": panel.get_xlim()[0], "center": row["tokens"], "right": panel.get_xlim()[1]}[side]
        panel.annotate(rate, (at, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                       ha=side, va="bottom", color="#555555")  # fmt: skip
