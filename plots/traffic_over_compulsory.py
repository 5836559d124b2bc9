"""What DRAM moves in one forward over the bytes that it must, against tokens: every system, by hardware counters."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.names import FAST
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.analysis.traffic import COUNTERS, LEFT_OUT, totals, uncounted
from tritonmoe_bench.experiments.analysis.traffic_load import load

from .parts import caption, layout, style

NAME = "traffic_over_compulsory"
TITLE = "Memory traffic over the compulsory bytes"
STUDIES = ("traffic",)
TICKS = (0.9, 1, 1.1, 1.2, 1.35, 1.5, 1.75, 2, 2.5, 3, 4)
TOP = 4.5
"""Where panels end: what lies above is written there, as it would press all else into a line at 1."""
GOAL = 1.05
GOAL_TOKENS = (8, 512)
"""What `fast` is built to stay under, and from how many tokens to how many."""


def draw(results: Results) -> Figure:
    traffic = load(results, COUNTERS)
    counted = totals(traffic.rows)
    if counted.empty:
        raise traffic.lacks("forward by hardware counters")
    missing = uncounted(traffic.rows)
    points = traffic.rows.groupby("model")["case_hash"].nunique()
    models = names.models_in_order(counted["model"])
    columns = min(3, len(models))
    figure, axes = layout.sheet(-(-len(models) // columns), columns, 2.6, TITLE, used=len(models), sharey=True)
    for panel, model in zip(axes, models):
        here = counted[counted["model"] == model]
        for name in compare.systems(here):
            rows = here[here["implementation"] == name].sort_values("tokens")
            layout.plot_system(panel, name, rows["tokens"], rows["over"])
        panel.axhline(1, color=style.INK, lw=0.7, zorder=1)
        panel.axhline(GOAL, color="#d0003c", lw=1.0, ls=style.DASH, zorder=1)
        layout.power_axis(panel.xaxis, here["tokens"])
        panel.set_title(names.model_label(model), pad=14 if (counted["over"] > TOP).any() else None)
        panel.set_xlabel("tokens")
    least, most = counted["over"].min(), counted["over"].max()
    axes[0].set_yscale("log")
    top = min(most * 1.1, TOP)
    axes[0].set_ylim(min(0.95, least / 1.03), top)
    axes[0].yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if least / 1.03 <= tick <= top]))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("DRAM bytes / compulsory bytes (ratio)")
    for panel, model in zip(axes, models):
        _write_above(panel, counted[(counted["model"] == model) & (counted["over"] > top)], top)
    for panel in axes[1:]:
        panel.tick_params(labelleft=False)
    # Points that nobody asked for are named below, and would take up half of a panel.
    failed = missing[missing["reason"] != LEFT_OUT]
    layout.mark_missing(
        [(panel, failed[failed["model"] == model], points.get(model, 0)) for panel, model in zip(axes, models)],
        "tokens",
    )
    notes = (
        "DRAM bytes read and written during one forward, L2 emptied before it, by the GPU's counters; compulsory: the "
        "active experts' weights, the router, x and y, each once. What stays in the L2 at the end has not been written "
        f"and is not in it, so that a value can be just under 1. Dashed: {GOAL:g}, what fast is built to stay under "
        f"{_reached(counted)}." + (f" Arrows: points above {top:g}." if most > top else "")
    )
    handles = layout.legend_of([*counted["implementation"], *missing["implementation"]], failed)
    return layout.finish(figure, handles, caption.of_traffic(traffic, notes, missing))


def _write_above(panel: Axes, points: pd.DataFrame, top: float) -> None:
    """The values that lie above the panel, in the colours of their systems, the larger ones further up."""
    for _, here in points.sort_values("over").groupby("tokens"):
        for row, (_, point) in enumerate(here.iterrows()):
            look = style.look(point["implementation"])
            panel.annotate(f"↑{point['over']:.3g}", (point["tokens"], top), (0, 1 + 7 * row), va="bottom", ha="center",
                           textcoords="offset points", color=look.color, annotation_clip=False)  # fmt: skip


def _reached(counted: pd.DataFrame) -> str:
    least, most = GOAL_TOKENS
    own = counted[(counted["implementation"] == FAST) & counted["tokens"].between(least, most)]
    return f"at {least} to {most} tokens" + (f", where it is at most {own['over'].max():.3f}" if len(own) else "")
