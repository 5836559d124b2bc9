"""What each choice of `fast` is worth, all else equal: by outputs at few tokens, fused routing, tile heights by load.

A line for each model. A panel of which the study was not run is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.decode import EXPERT, OUTPUT, crossing
from tritonmoe_bench.experiments.analysis.fusion import FUSED, PERMUTED, process_noise
from tritonmoe_bench.experiments.analysis.headline import geometric_mean
from tritonmoe_bench.experiments.analysis.names import DYNAMIC, FIXED, fixed_heights
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results, Study
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, style

NAME = "ablations"
TITLE = "What each choice of fast is worth"
STUDIES = ("decode", "fusion", "heights")
PANEL_IN = 1.75


class Choice(NamedTuple):
    """A panel: words over it, its pairs of `compare.ratios`, the column along it, and whether its ratios need a log."""

    words: str
    pairs: pd.DataFrame
    across: str
    log: bool = False


def draw(results: Results) -> Figure:
    studies: dict[str, Study] = {}
    for name in STUDIES:
        with contextlib.suppress(MissingStudy):
            studies[name] = results.study(name)
    choices = {key: choice for key, choice in _choices(studies).items() if len(choice.pairs)}
    if not choices:
        raise results.study(STUDIES[0]).lacks(f"rows of {OUTPUT} and {EXPERT}")
    models = names.models_in_order(pd.concat([choice.pairs for choice in choices.values()])["model"])
    noise = process_noise(studies["fusion"].rows) if "gather" in choices else (1.0, 0)
    title = say("figures.j2", "ablations", **{key: choice.pairs for key, choice in choices.items()},
                crossings=_crossings(choices), height=_height())  # fmt: skip
    figure, axes = layout.sheet(1, len(choices), PANEL_IN, title)
    for panel, choice in zip(axes, choices.values()):
        for model in models:
            _line(panel, choice, model)
        panel.axhline(1, color=style.INK, lw=0.8, zorder=1.5)
        panel.set_title(choice.words)
    axes[0].set_ylabel("speed with it / without")
    used = {study for study in studies if any(key in _OF[study] for key in choices)}
    notes = say("figures.j2", "ablations_notes", noise=100 * (noise[0] - 1), repeats=noise[1],
                dtype=next(iter(choices.values())).pairs["dtype"].iloc[0])  # fmt: skip
    handles = [
        Line2D([], [], color=color, marker=marker, ls=line, label=names.model_label(model))
        for model in models
        for color, marker, line in [style.model_look(model)]
    ]
    return layout.finish(figure, handles, notes, caption.source(*(studies[name] for name in STUDIES if name in used)))


_OF = {"decode": ("outputs",), "fusion": ("gather",), "heights": ("heights", "best_height")}
"""The panels of each study."""


def _choices(studies: dict[str, Study]) -> dict[str, Choice]:
    """The panels of the studies that there are, by the names under which the sentence has their pairs."""
    panels: dict[str, Callable[[pd.DataFrame], dict[str, Choice]]] = {
        "decode": lambda rows: {
            "outputs": Choice(
                "by outputs, not experts", compare.ratios(rows, OUTPUT, [EXPERT], "best"), "tokens", log=True
            )
        },
        "fusion": lambda rows: {
            "gather": Choice("gather fused, no permute", compare.ratios(rows, FUSED, [PERMUTED], "best"), "tokens")
        },
        "heights": _heights,
    }
    found: dict[str, Choice] = {}
    for name, study in studies.items():
        found |= panels[name](compare.plain(study.rows))
    return found


def _heights(rows: pd.DataFrame) -> dict[str, Choice]:
    fixed = fixed_heights(rows["implementation"])
    over = compare.ratios(rows, DYNAMIC, [_height()], "best")
    best = compare.to_best(compare.ratios(rows, DYNAMIC, fixed, "best"))
    rows_of = _height().removeprefix(FIXED)
    return {
        "heights": Choice(f"tile heights by load,\nnot {rows_of} rows for all", over, "skew"),
        "best_height": Choice("… not the best\nsingle height", best if len(fixed) > 1 else best.head(0), "skew"),
    }


def _height() -> str:
    """The system with the paper's tile height for all."""
    return f"{FIXED}{claim('dynamic-assignment')['fixed_rows']}"


def _line(panel: Axes, choice: Choice, model: str) -> None:
    """Geometric means over what the panel does not tell apart, with bars from the least to the most."""
    color, marker, line = style.model_look(model)
    groups = choice.pairs[choice.pairs["model"] == model].groupby(choice.across)["ratio"]
    means = groups.agg(geometric_mean)
    panel.plot(means.index, means, color=color, marker=marker, ls=line)
    panel.vlines(means.index, groups.min(), groups.max(), color=color, lw=0.7)
    if choice.across == "tokens":
        layout.power_axis(panel.xaxis, choice.pairs["tokens"], apart=8)
        panel.set_xlabel("tokens")
    else:
        panel.set_xlabel("Zipf exponent")
        panel.set_xticks(sorted(choice.pairs["skew"].unique()))
        panel.xaxis.set_major_formatter("{x:g}")
    if choice.log:
        panel.set_yscale("log")
        layout.log_labels(panel.yaxis)


def _crossings(choices: dict[str, Choice]) -> list[float]:
    """At how many tokens the output-centric path falls behind, of the models where it does."""
    if "outputs" not in choices:
        return []
    found = [crossing(pairs) for _, pairs in choices["outputs"].pairs.groupby("model")]
    return sorted(tokens for tokens in found if tokens is not None)
