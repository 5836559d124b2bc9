"""Stage breakdown of the paper's pipeline and of `fast`: share and latency, beside the published A100 table."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from tritonmoe_bench.experiments.analysis import compare, published
from tritonmoe_bench.experiments.analysis.names import model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, style

NAME = "stage_breakdown"
TITLE = "Where the time goes, stage by stage"
STUDIES = ("stages",)
STAGES = {
    "router": ("router", "#b9c4d0", "", "o"),
    "permute": ("permute", "#5b8db8", "////", "s"),
    "schedule": ("schedule, in place of permute", "#44aa99", "xxxx", "P"),
    "expert_ffn": ("expert FFN", "#e66100", "", "D"),
    "unpermute_combine": ("unpermute, combine", "#4a2466", "", "^"),
}
"""Label, colour, hatch and marker of each stage, in order."""
OTHERS = (("#999933", "....", "v"), ("#cc6677", "\\\\\\\\", "X"), ("#117733", "||||", "<"))
VARIANTS = ("unfused", "fused")
PIPELINES = {"paper_unfused": "unfused", "paper_fused": "fused", "paper_fused_graph": "fused + GPU schedule"}
Bars = list[tuple[str, dict[str, float]]]


def draw(results: Results) -> Figure:
    study = results.study("stages")
    rows = study.rows
    models = models_in_order(rows["model"])
    bars = {model: [*_published(model), *_measured(rows[rows["model"] == model])] for model in models}
    looks = _looks([stage for group in bars.values() for _, stages in group for stage in stages])
    sizes = [len(bars[model]) for model in models]
    figure, axes = layout.sheet(
        len(models), 2, 0.55 + 0.16 * max(sizes), TITLE, sharey="row", height_ratios=[size + 2 for size in sizes]
    )
    for index, model in enumerate(models):
        shares, latencies = axes[2 * index], axes[2 * index + 1]
        _draw(shares, latencies, bars[model], looks)
        tokens = ", ".join(str(count) for count in sorted(rows.loc[rows["model"] == model, "tokens"].unique()))
        for panel in (shares, latencies):
            panel.set_title(f"{model_label(model)}, {tokens} tokens")
    missing = compare.missing(rows)
    notes = (
        "Left: share of the sum of the stages, from left to right in the order of the legend; right: latency of each. "
        "Stages measured here are timed one by one, in the launch mode named; A100: the paper's own table (fp16), "
        "where it gives them all."
    )
    handles = [
        Line2D([], [], color=color, marker=marker, ls="none", ms=5, mec=style.INK, mew=0.4, label=label)
        for label, color, _, marker in looks.values()
    ]
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def _draw(shares: Axes, latencies: Axes, bars: Bars, looks: dict[str, tuple[str, str, str, str]]) -> None:
    for place, (_, stages) in enumerate(bars):
        total, start = sum(stages.values()), 0.0
        for stage in (stage for stage in looks if stage in stages):
            _, color, hatch, marker = looks[stage]
            share = stages[stage] / total
            shares.barh(place, share, 0.75, start, color=color, hatch=hatch, edgecolor="white", linewidth=0.3)
            if share > 0.12:
                shares.text(start + share / 2, place, f"{share:.0%}", ha="center", va="center", bbox=BOX)
            start += share
            latencies.plot(stages[stage], place, marker, color=color, ms=4, mec=style.INK, mew=0.4)
    shares.set_xlim(0, 1)
    shares.xaxis.set_major_formatter(PercentFormatter(1))
    shares.set_xlabel("share of the stages' sum (%)")
    shares.set_yticks(range(len(bars)), [label for label, _ in bars])
    shares.set_ylim(len(bars) - 0.4, -0.6)
    shares.grid(False)
    latencies.set_xscale("log")
    latencies.set_xlabel("latency (µs)")
    layout.log_labels(latencies.xaxis, subs=(1,))


BOX = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}


def _measured(rows: pd.DataFrame) -> Bars:
    """One bar for each pipeline and case, in the launch mode with the smaller sum of those that have all stages."""
    bars: Bars = []
    several = rows["tokens"].nunique() > 1
    names = [*PIPELINES, *(name for name in compare.systems(rows) if name not in PIPELINES)]
    for name in names:
        mine = rows[rows["implementation"] == name]
        cases = [group for _, group in mine.groupby(["tokens", "case_hash"])]
        for group in sorted(cases, key=lambda case: case["dtype"].iloc[0], reverse=True):
            first = group.iloc[0]
            case = f"{first['dtype']}, {first['tokens']} tokens" if several else first["dtype"]
            timed = group[(group["status"] == "ok") & group["p50_us"].notna()]
            modes = {str(launch): dict(zip(mode["stage"], mode["p50_us"])) for launch, mode in timed.groupby("launch")}
            whole = [launch for launch in modes if len(modes[launch]) == timed["stage"].nunique()]
            if whole:
                launch = min(whole, key=lambda mode: (sum(modes[mode].values()), compare.LAUNCH_ORDER[mode]))
                label = PIPELINES.get(name, style.look(name).label)
                bars.append((f"{label}, {case} ({launch})", modes[launch]))
    return bars


def _published(model: str) -> Bars:
    """The paper's bars of a model: a variant for which it gives every stage."""
    table = published.stages()
    table = table[table["model"] == model]
    bars: Bars = []
    for variant in VARIANTS:
        rows = table[table["variant"].isin([variant, "both"])]
        if (rows["variant"] == variant).any():
            bars.append((f"A100: {variant}, fp16", dict(zip(rows["stage"], rows["p50_us"]))))
    return bars


def _looks(stages: list[str]) -> dict[str, tuple[str, str, str, str]]:
    """The look of each stage that occurs, the listed ones first and the others as they come."""
    looks = {stage: look for stage, look in STAGES.items() if stage in stages}
    others = [stage for stage in dict.fromkeys(stages) if stage not in STAGES]
    return looks | {stage: (stage, *OTHERS[index % len(OTHERS)]) for index, stage in enumerate(others)}
