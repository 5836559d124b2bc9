"""Many experts and skewed routing: the paper's pipeline over Megablocks' block-sparse layout, and shares of the limit.

A column for each batch size. Rows: a map by experts and skew, shares against skew, and shares against the number of
experts at equal parameters.
"""

from __future__ import annotations

import contextlib

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import MEGABLOCKS, OWN_CODE, PAPER
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results, Study
from tritonmoe_bench.experiments.claims.skew import EXTREME
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, lines, maps, style
from .throughput import share_of_limit

NAME = "skew"
TITLE = "Many experts and skewed routing"
STUDIES = ("skew", "experts")
SPARSE = MEGABLOCKS[0]
MAP_IN, LINES_IN = 1.65, 1.35


def draw(results: Results) -> Figure:
    study = results.study("skew")
    rows = compare.plain(study.rows)
    system = next((name for name in (OWN_CODE, PAPER) if _timed(rows, name)), PAPER)
    pairs = compare.ratios(rows, system, [SPARSE], "eager")
    best = share_of_limit(compare.timed(rows, "best"))
    if pairs.empty or best.empty:
        raise study.lacks(f"eager rows of {PAPER} and {SPARSE}, and measured limits")
    experts: Study | None = None
    with contextlib.suppress(MissingStudy):
        experts = results.study("experts")
    tokens = sorted(rows["tokens"].unique())
    counts = _experts_of_lines(rows)
    by_count = share_of_limit(compare.timed(compare.plain(experts.rows), "best")) if experts else best.head(0)
    heights = [MAP_IN, LINES_IN] + [LINES_IN] * (len(by_count) > 0)
    figure, axes = layout.sheet(
        len(heights), len(tokens), sum(heights) / len(heights), _title(pairs, system), height_ratios=heights,
        sharey="row",
    )  # fmt: skip
    for column, batch in enumerate(tokens):
        panels = axes[column :: len(tokens)]
        panels[0].set_title(f"{batch} tokens")
        here = rows[rows["tokens"] == batch]
        maps.draw_ratios(panels[0], here, pairs, "num_experts", "skew")
        panels[0].set_xlabel("Zipf exponent")
        of_lines = best[(best["tokens"] == batch) & (best["num_experts"] == counts)]
        _shares(panels[1], of_lines, "skew", f"Zipf exponent, {counts} experts")
        if len(by_count):
            of_counts = by_count[by_count["tokens"] == batch]
            _shares(panels[2], of_counts, "num_experts", "experts, of equal parameters")
    for panel, words in zip(axes[:: len(tokens)], ("experts", *["% of the\nmeasured limit"] * 2)):
        panel.set_ylabel(words)
    layer = rows.iloc[0].to_dict()
    notes = say("figures.j2", "skew_notes", layer=layer, system=style.look(system).label)
    shown = pd.concat([best[best["num_experts"] == counts], by_count])
    handles = [*maps.legend(pairs, style.look(system).label, "Megablocks"), *lines.handles(shown)]
    source = caption.source(*[study, *([experts] if experts and len(by_count) else [])])
    return layout.finish(figure, handles, caption.notes(study, notes, shown=shown), source)


def _timed(rows: pd.DataFrame, name: str) -> bool:
    return len(compare.timed(rows[rows["implementation"] == name], "eager")) > 0


def _experts_of_lines(rows: pd.DataFrame) -> int:
    """Of how many experts the lines are: the least in the claim's regime, or the most that there are."""
    counts = sorted(rows["num_experts"].unique())
    regime = [int(count) for count in counts if count >= claim("skew-regime")["experts_from"]]
    return regime[0] if regime else int(counts[-1])


def _title(pairs: pd.DataFrame, system: str) -> str:
    regime = pairs[(pairs["num_experts"] >= claim("skew-regime")["experts_from"]) & (pairs["skew"] > EXTREME)]
    return say(
        "figures.j2", "skew", own=system == OWN_CODE, ratios=regime["ratio"] if len(regime) else pairs["ratio"],
        regime=len(regime) > 0, experts=claim("skew-regime")["experts_from"], extreme=EXTREME,
    )  # fmt: skip


def _shares(panel: Axes, rows: pd.DataFrame, across: str, words: str) -> None:
    lines.draw(panel, rows, across, "share")
    panel.axhline(1, color=style.INK, lw=1, ls=style.DOT)
    panel.set_ylim(0, 1.06)
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    panel.set_xlabel(words)
    if across == "num_experts" and len(rows):
        layout.power_axis(panel.xaxis, rows[across], apart=2)
    else:
        panel.xaxis.set_major_locator(FixedLocator(sorted(rows[across].unique())))
        panel.xaxis.set_major_formatter("{x:g}")
