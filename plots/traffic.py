"""Memory traffic of one forward by tensor, unfused beside fused beside `fast`: model, interpreter, the GPU's counters.

One column per case and one row per accounting: what DRAM moves by the counters, which see no tensors; and by the model
or the interpreter every access, each address once per stage, and the latter without weights.
"""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tritonmoe_bench.experiments.analysis import names
from tritonmoe_bench.experiments.analysis.names import FAST, PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.analysis.traffic import (
    ACCOUNTINGS,
    COUNTERS,
    TENSORS,
    grouped,
    saving,
)
from tritonmoe_bench.experiments.analysis.traffic_load import load

from .parts import caption, layout

NAME = "traffic"
TITLE = "Memory traffic of one forward, by tensor"
BARS = {UNFUSED: "unfused", PAPER: "fused", FAST: "fast"}
STUDIES = ("traffic",)
MOST_TOKENS = 512
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


def draw(results: Results) -> Figure:
    traffic = load(results)
    rows = traffic.rows[traffic.rows["implementation"].isin(list(BARS))]
    shown = _columns(rows)
    if not shown:
        raise traffic.lacks("bytes of both pipelines")
    counted = any(saving(column, "dram") is not None for column in shown)
    accountings = [name for name in ACCOUNTINGS if counted or name != "dram"]
    figure, axes = layout.sheet(len(accountings), len(shown), 1.35, TITLE)
    seen: set[str] = set()
    for index, panel in enumerate(axes):
        row, column = divmod(index, len(shown))
        accounting = accountings[row]
        seen |= _bars(panel, shown[column], accounting)
        if row == 0:
            first = shown[column].iloc[0]
            batch = f"{first['tokens']} tokens, {first['dtype']}"
            panel.set_title("\n".join([names.model_label(first["model"]), batch, _methods(shown[column])]))
        if column == 0:
            panel.set_ylabel(f"{textwrap.fill(ACCOUNTINGS[accounting], 14)}\n{panel.get_ylabel()}")
    claimed = claim("memory-traffic")["saving"]
    notes = (
        "Bytes read and written, summed over the stages, of the paper's pipelines and of fast; above the bars, the "
        f"change from unfused in % (the paper claims {change(claimed)} for fused). Model: closed form from shape, "
        "tiles and routing; interpreter: counted in Triton's interpreter; neither takes off what caches absorb. "
        "Counters: the GPU's own of its DRAM, L2 emptied before the forward."
    )
    handles = [
        Patch(facecolor=TENSORS[name][1], hatch=TENSORS[name][2], edgecolor="#666666", lw=0.4, label=TENSORS[name][0])
        for name in TENSORS
        if name in seen
    ]
    here = rows["case_hash"].isin([column["case_hash"].iloc[0] for column in shown]) & (rows["method"] == COUNTERS)
    lacking = rows[here & (rows["status"] != "ok") & (rows["stage"] == "total")]
    return layout.finish(figure, handles, caption.of_traffic(traffic, notes, lacking))


def _columns(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of each column: a model and method that has both pipelines, at its largest batch up to `MOST_TOKENS`.

    The counters, which tell another accounting than the others, stand in the column of their case.
    """
    columns = []
    for model in names.models_in_order(rows["model"]):
        of_model = rows[(rows["model"] == model) & (rows["tokens"] <= MOST_TOKENS)]
        counters = of_model[of_model["method"] == COUNTERS]
        others = [name for name in dict.fromkeys(of_model["method"]) if name != COUNTERS]
        chosen = []
        for method in others:
            cases = of_model[of_model["method"] == method].groupby("case_hash", sort=False)
            complete = [case for _, case in cases if saving(case, "issued") is not None]
            if complete:
                case = max(complete, key=_size)
                chosen.append(pd.concat([case, counters[counters["case_hash"] == case["case_hash"].iloc[0]]]))
        if not chosen:
            cases = counters.groupby("case_hash", sort=False)
            complete = [case for _, case in cases if saving(case, "dram") is not None]
            chosen = [max(complete, key=_size)] if complete else []
        columns += chosen
    return columns


def _size(case: pd.DataFrame) -> tuple[int, bool]:
    return case["tokens"].iloc[0], case["dtype"].iloc[0] == "bf16"


def _methods(rows: pd.DataFrame) -> str:
    return ", ".join(dict.fromkeys(rows.loc[rows["status"] == "ok", "method"]))


def change(saved: float) -> str:
    """What a share that is saved changes, in per cent without the sign of it, which narrow bars have no room for."""
    digits = 0 if abs(saved) >= 0.0995 else 1
    return f"{-100 * saved:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _bars(panel: Axes, rows: pd.DataFrame, accounting: str) -> set[str]:
    """Draws a stacked bar per pipeline; returns the groups of tensors in them."""
    seen: set[str] = set()
    stacks = [grouped(rows[rows["implementation"] == name], accounting) for name in BARS]
    most = max(stack.sum() for stack in stacks)
    panel.set_xticks(range(len(BARS)), list(BARS.values()), rotation=30)
    panel.set_xlim(-0.6, len(BARS) - 0.4)
    panel.grid(False, axis="x")
    if not most:
        panel.text(0.5, 0.5, "not counted", ha="center", va="center", transform=panel.transAxes)
        panel.set_yticks([])
        panel.set_ylabel("traffic")
        return seen
    unit, size = next((unit, size) for unit, size in UNITS if most >= size)
    for place, (implementation, stack) in enumerate(zip(BARS, stacks)):
        bottom = 0.0
        for name, value in stack.items():
            _, color, hatch = TENSORS[str(name)]
            panel.bar(place, value / size, 0.75, bottom, color=color, hatch=hatch, edgecolor="#666666", linewidth=0.4)
            bottom += value / size
            seen.add(str(name))
        saved = saving(rows, accounting, implementation)
        words = "" if implementation == UNFUSED or saved is None else change(saved)
        words = words if bottom else "none"
        if words:
            panel.annotate(words, (place, bottom), (0, 2), textcoords="offset points", ha="center")
    panel.set_ylim(0, 1.2 * most / size)
    panel.set_ylabel(f"traffic ({unit})")
    return seen
