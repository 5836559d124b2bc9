"""Energy of a forward over that of `stream`, power, and the clock that settles, against tokens; a column per model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import LIMIT, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, style

NAME = "energy"
TITLE = "Energy, power and clock of forwards back to back"
STUDIES = ("energy",)


def draw(results: Results) -> Figure:
    study = results.study("energy")
    rows = compare.plain(study.rows)
    even = rows[rows["skew"] == 0]
    if even.empty:
        raise study.lacks("rows with uniform routing")
    models, names = models_in_order(even["model"]), compare.systems(rows)
    best, missing = compare.timed(even, "best"), compare.missing(even)
    best = over_stream(best)
    figure, grid = layout.sheet(3, len(models), 1.45, TITLE, sharex=True, sharey="row")
    energy, power, clock = (grid[row * len(models) : (row + 1) * len(models)] for row in range(3))
    for index, model in enumerate(models):
        here = best[best["model"] == model]
        energy[index].set_title(model_label(model))
        for column, panel in (("over_stream", energy[index]), ("power_w", power[index]),
                              ("settled_clock_mhz", clock[index])):  # fmt: skip
            _lines(panel, here, names, column)
        for limit in here["power_limit_w"].dropna().unique():
            power[index].axhline(limit, color=style.INK, lw=1.1, ls=style.DASH, zorder=1.5)
        layout.power_axis(clock[index].xaxis, even["tokens"])
        clock[index].set_xlabel("tokens")
    if best["over_stream"].notna().any():
        energy[0].set_yscale("log")
        layout.log_labels(energy[0].yaxis)
    else:
        energy[0].text(0.5, 0.5, "no energy of stream", ha="center", transform=energy[0].transAxes)
    power[0].set_ylim(0, 1.1 * max([1.0, *best["power_w"], *best["power_limit_w"]]))
    clock[0].set_ylim(0, 1.1 * max([1.0, *best["settled_clock_mhz"]]))
    energy[0].set_ylabel("energy over\nthat of stream")
    power[0].set_ylabel("power (W)")
    clock[0].set_ylabel("SM clock (MHz)")
    layout.mark_missing(layout.by_model(power, models, even, missing), "tokens")
    notes = (
        f"{rows['dtype'].iloc[0]}, uniform routing. Energy of one forward over what reading its weights once takes "
        f"(stream). Dashed: the card's power limit. Power is what the card's counter of energy rose by between its "
        f"steps: the largest lies {above_limit(rows):.0f} % above the limit, and others may be as far off. "
        f"{layout.FASTER}"
    )
    return layout.finish(figure, layout.legend_of(names, missing), caption.text(study, notes, missing))


def over_stream(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds the column over_stream: energy over that of `stream` at the same case, NaN where that has none."""
    stream = rows[rows["implementation"] == LIMIT].set_index("case_hash")["energy_mj"]
    return rows.assign(over_stream=rows["energy_mj"] / rows["case_hash"].map(stream))


def above_limit(rows: pd.DataFrame) -> float:
    """How far the largest power lies above the card's limit, in per cent; 0 where none does."""
    share = (rows["power_w"] / rows["power_limit_w"]).max()
    return max(0.0, 100 * (share - 1)) if pd.notna(share) else 0.0


def _lines(panel: Axes, rows: pd.DataFrame, names: list[str], column: str) -> None:
    for name in names:
        points = rows[(rows["implementation"] == name) & rows[column].notna()].sort_values("tokens")
        layout.plot_system(panel, name, points["tokens"], points[column], points["launch"] == "eager")
