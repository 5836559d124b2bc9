"""Energy of a forward over that of reading its weights once, and power, against tokens; a column for each model."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import LIMIT, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, lines, style

NAME = "energy"
TITLE = "Energy and power of forwards back to back"
STUDIES = ("energy",)


def draw(results: Results) -> Figure:
    study = results.study("energy")
    rows = compare.plain(study.rows)
    best = over_stream(compare.timed(rows[rows["skew"] == 0], "best"))
    counted = best[(best["implementation"] != LIMIT) & best["over_stream"].notna()]
    if counted.empty:
        raise study.lacks("energy of a system and of stream with uniform routing")
    models = models_in_order(counted["model"])
    title = say("figures.j2", "energy", medians=lines.medians(counted, "over_stream"))
    figure, axes = layout.sheet(2, len(models), 1.35, title, sharex=True, sharey="row")
    above, below = axes[: len(models)], axes[len(models) :]
    for energy, power, model in zip(above, below, models):
        here = counted[counted["model"] == model]
        lines.draw(energy, here, "tokens", "over_stream")
        lines.draw(power, here, "tokens", "power_w")
        for limit in sorted(here["power_limit_w"].dropna().unique()):
            power.axhline(limit, color=style.INK, lw=1, ls=style.DOT)
        energy.axhline(1, color=style.INK, lw=0.8, zorder=1.5)
        energy.set_title(model_label(model))
        layout.power_axis(power.xaxis, counted["tokens"])
        power.set_xlabel("tokens")
    above[0].set_yscale("log")
    layout.log_labels(above[0].yaxis, subs=(1, 1.2, 1.5, 2, 3, 5))
    below[0].set_ylim(0, 1.1 * max([1.0, *counted["power_w"], *counted["power_limit_w"]]))
    above[0].set_ylabel("energy / of reading\nthe weights once")
    below[0].set_ylabel("power (W)")
    notes = say("figures.j2", "energy_notes", dtype=rows["dtype"].iloc[0], above=above_limit(rows))
    return layout.finish(figure, lines.handles(counted), notes, caption.source(study))


def over_stream(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds the column over_stream: energy over that of `stream` at the same case, NaN where that has none."""
    stream = rows[rows["implementation"] == LIMIT].set_index("case_hash")["energy_mj"]
    return rows.assign(over_stream=rows["energy_mj"] / rows["case_hash"].map(stream))


def above_limit(rows: pd.DataFrame) -> float:
    """How far the largest power lies above the card's limit, in per cent; 0 where none does."""
    share = (rows["power_w"] / rows["power_limit_w"]).max()
    return max(0.0, 100 * (share - 1)) if pd.notna(share) else 0.0
