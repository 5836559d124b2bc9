"""Memory traffic of one forward by tensor, unfused beside fused: the analytic model, and what the interpreter counts.

A column a case and method; a row an accounting: every access, each address once a stage, and that without weights.
"""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from . import caption, data, layout, published, style
from .traffic_data import ACCOUNTINGS, FUSED, TENSORS, UNFUSED, grouped, saving

NAME = "traffic"
TITLE = "Memory traffic of one forward, unfused against fused"
STUDIES = ("traffic",)
MOST_TOKENS = 512
BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


def draw(results: data.Results) -> Figure:
    study = results.study("traffic")
    rows = study.rows[study.rows["implementation"].isin([FUSED, UNFUSED])]
    shown = _columns(rows)
    if not shown:
        raise data.MissingStudy(
            f"{study.path} has no bytes of both pipelines: python experiments/sweep.py study=traffic"
        )
    figure, axes = layout.sheet(len(ACCOUNTINGS), len(shown), 1.35, TITLE)
    seen: set[str] = set()
    for index, panel in enumerate(axes):
        row, column = divmod(index, len(shown))
        accounting = list(ACCOUNTINGS)[row]
        seen |= _bars(panel, shown[column], accounting)
        if row == 0:
            first = shown[column].iloc[0]
            panel.set_title(
                f"{style.model_label(first['model'])}\n{first['tokens']} tokens, {first['dtype']}\n{first['method']}"
            )
        if column == 0:
            panel.set_ylabel(f"{textwrap.fill(ACCOUNTINGS[accounting], 14)}\n{panel.get_ylabel()}")
    claimed = published.claim("memory-traffic")["saving"]
    notes = (
        "Bytes read and written, summed over the stages; above the bars, the share that "
        f"fusing saves (the paper claims {claimed:.0%}). Method model: closed form from shape, tiles and routing; "
        "interpreter: counted in Triton's interpreter; counters: the GPU's. What caches absorb is not taken off."
    )
    handles = [
        Patch(facecolor=TENSORS[name][1], hatch=TENSORS[name][2], edgecolor="#666666", lw=0.4, label=TENSORS[name][0])
        for name in TENSORS
        if name in seen
    ]
    lacking = rows[(rows["status"] != "ok") & (rows["stage"] == "total")]
    return layout.finish(figure, handles, caption.text(study, notes, lacking))


def _columns(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of each column: a model and method that has both pipelines, at its largest batch up to `MOST_TOKENS`."""
    columns = []
    for model in style.models_in_order(rows["model"]):
        for method in dict.fromkeys(rows.loc[rows["model"] == model, "method"]):
            here = rows[(rows["model"] == model) & (rows["method"] == method) & (rows["tokens"] <= MOST_TOKENS)]
            both = [case for _, case in here.groupby("case_hash", sort=False) if saving(case, "issued") is not None]
            if both:
                columns.append(max(both, key=lambda case: (case["tokens"].iloc[0], case["dtype"].iloc[0] == "bf16")))
    return columns


def _bars(panel: Axes, rows: pd.DataFrame, accounting: str) -> set[str]:
    """Two stacked bars; returns the groups of tensors in them."""
    seen: set[str] = set()
    stacks = [grouped(rows[rows["implementation"] == name], accounting) for name in (UNFUSED, FUSED)]
    most = max(stack.sum() for stack in stacks)
    panel.set_xticks([0, 1], ["unfused", "fused"])
    panel.set_xlim(-0.6, 1.6)
    panel.grid(False, axis="x")
    if not most:
        panel.text(0.5, 0.5, "not told\nby this method", ha="center", va="center", transform=panel.transAxes)
        panel.set_yticks([])
        panel.set_ylabel("traffic")
        return seen
    unit, size = next((unit, size) for unit, size in UNITS if most >= size)
    for place, stack in enumerate(stacks):
        bottom = 0.0
        for name, value in stack.items():
            _, color, hatch = TENSORS[str(name)]
            panel.bar(place, value / size, 0.75, bottom, color=color, hatch=hatch, edgecolor="#666666", linewidth=0.4)
            bottom += value / size
            seen.add(str(name))
    panel.set_ylim(0, 1.25 * most / size)
    panel.set_ylabel(f"traffic ({unit})")
    saved = saving(rows, accounting)
    if saved is not None:
        panel.text(0.5, 0.97, f"saved: {saved:.1%}", transform=panel.transAxes, ha="center", va="top", bbox=BOX)
    return seen
