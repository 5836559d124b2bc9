"""Error of every system against a float32 computation, one panel per dtype and per format of packed weights: the range
over all points and the median.

The points are those of the headline, the throughput, the quant and, for the two ways to organise it, the decode study.
Errors depend on the shape, so each system also has the median of its error over PyTorch's own at the same points beside
it: with packed weights, PyTorch's over the unpacked ones, with activations of as many bits.
"""

from __future__ import annotations

import contextlib

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.decode import EXPERT, OUTPUT
from tritonmoe_bench.experiments.analysis.headline import peers
from tritonmoe_bench.experiments.analysis.names import FAST, LIMIT
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, style

NAME = "accuracy"
TITLE = "Error of every system against float32"
STUDIES = ("headline", "throughput", "decode", "quant")
DECODE, QUANT = STUDIES[2:]
"""Where they were run."""
BAND = "PyTorch's own computation, the same points"


def draw(results: Results) -> Figure:
    studies = [results.study(name) for name in STUDIES[:2]]
    for name in (DECODE, QUANT):
        with contextlib.suppress(MissingStudy):
            studies.append(results.study(name))
    rows = pd.concat([study.rows for study in studies], ignore_index=True)
    rows = rows[rows["implementation"] != LIMIT]
    known = errors(rows[(rows["study"] != DECODE) | rows["implementation"].isin([OUTPUT, EXPERT])])
    if known.empty:
        raise studies[0].lacks(f"error of a system other than {LIMIT}")
    packed = known["quant"] != "none"
    known = known.assign(panel=known["quant"].where(packed, known["dtype"]))
    names, dtypes = compare.systems(known), [*sorted(known["dtype"].unique()), *sorted(known["quant"][packed].unique())]
    plain = known[~packed]
    medians = plain.groupby("implementation")["ratio"].median()
    others = medians[peers(plain)]
    title = say("figures.j2", "accuracy", fast=medians.get(FAST), others=others if len(others) else medians)
    figure, axes = layout.sheet(1, len(dtypes), 0.4 + 0.16 * len(names), title, sharey=True)
    for panel, dtype in zip(axes, dtypes):
        _panel(panel, known[known["panel"] == dtype], names)
        panel.set_title(dtype)
        panel.set_xlabel("relative error (10⁻³)")
    axes[0].set_yticks(range(len(names)), [style.look(name).label for name in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    counts = known.groupby("panel")["case_hash"].nunique()
    notes = say("figures.j2", "accuracy_notes", points=", ".join(f"{dtype} {counts[dtype]}" for dtype in dtypes))
    return layout.finish(figure, _handles(), notes, caption.source(*studies))


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per case and system with an error: rel_error, torch_rel_error and their ratio.

    Launch modes agree on the output, so the first one stands.
    """
    known = rows[(rows["status"] == "ok") & rows["rel_error"].notna() & rows["torch_rel_error"].notna()]
    known = known.drop_duplicates(["study", "case_hash", "implementation"])
    return known.assign(ratio=known["rel_error"] / known["torch_rel_error"])


def _panel(panel: Axes, known: pd.DataFrame, names: list[str]) -> None:
    for _, same in known.groupby(known["activations"].fillna("a16")):
        own = same["torch_rel_error"]
        panel.axvspan(own.min(), own.max(), color=style.BAND, lw=0, zorder=0.5)
    highest = max(known["torch_rel_error"].max(), known["rel_error"].max())
    panel.set_xlim(0, 1.35 * highest)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1000 * value:g}"))
    for place, name in enumerate(names):
        look, mine = style.look(name), known[known["implementation"] == name]
        if mine.empty:
            continue
        error = mine["rel_error"]
        panel.plot([error.min(), error.max()], [place, place], color=look.color, lw=1.4, solid_capstyle="butt")
        panel.plot([error.median()], [place], color=look.color, marker=look.marker, ls="none", label=look.label)
        panel.text(1.33 * highest, place, f"{mine['ratio'].median():.2f} x", va="center", ha="right")


def _handles() -> list[Artist]:
    return [
        Patch(facecolor=style.BAND, label=BAND),
        Line2D([], [], color=style.INK, marker="o", lw=1.4, label="least to most, median"),
    ]
