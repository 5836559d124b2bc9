"""Where the time goes: the share of each stage of the paper's pipelines and of `fast`, beside the published table.

A panel for each model. What the host launches stage by stage is marked: its small stages are the host's time.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from tritonmoe_bench.experiments.analysis import compare, published
from tritonmoe_bench.experiments.analysis.names import model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say

from .parts import caption, layout, style

NAME = "stages"
TITLE = "Where the time goes, stage by stage"
STUDIES = ("stages",)
EXPERTS = "expert_ffn"
STAGES = {
    "router": ("router", "#b9c4d0", ""),
    "permute": ("permute", "#5b8db8", "////"),
    "schedule": ("schedule, in place of permute", "#44aa99", "xxxx"),
    EXPERTS: ("expert FFN", "#e66100", ""),
    "unpermute_combine": ("unpermute, combine", "#4a2466", ""),
}
"""Label, colour and hatch of each stage, in order."""
OTHERS = (("#999933", "...."), ("#cc6677", "\\\\\\\\"), ("#117733", "||||"))
VARIANTS = ("unfused", "fused")
PIPELINES = {"paper_unfused": "unfused", "paper_fused": "fused", "paper_fused_graph": "fused + GPU schedule"}
BAR_IN = 0.19
EAGER_ALPHA = 0.45


class Bar(NamedTuple):
    """stages: latency in us by stage; eager: launched stage by stage from the host."""

    label: str
    stages: dict[str, float]
    eager: bool = False


def draw(results: Results) -> Figure:
    study = results.study("stages")
    rows = study.rows
    dtype = "fp16" if "fp16" in set(rows["dtype"]) else sorted(rows["dtype"])[0]
    rows = rows[rows["dtype"] == dtype]
    models = models_in_order(rows["model"])
    bars = {model: [*_published(model), *_measured(rows[rows["model"] == model])] for model in models}
    measured = [bar for group in bars.values() for bar in group if not bar.label.startswith("A100")]
    if not measured:
        raise study.lacks("pipeline with a latency for each of its stages")
    labels = list(dict.fromkeys(bar.label for model in models for bar in bars[model]))
    labels.sort(key=lambda label: not label.startswith("A100"))
    looks = _looks([stage for group in bars.values() for bar in group for stage in bar.stages])
    title = say("figures.j2", "stages", shares=_shares(measured), published=_shares(
        [bar for group in bars.values() for bar in group if bar.label.startswith("A100")]
    ))  # fmt: skip
    figure, axes = layout.sheet(1, len(models), 0.6 + BAR_IN * len(labels), title, sharey=True)
    for panel, model in zip(axes, models):
        _panel(panel, {bar.label: bar for bar in bars[model]}, labels, looks)
        tokens = ", ".join(str(count) for count in sorted(rows.loc[rows["model"] == model, "tokens"].unique()))
        panel.set_title(f"{model_label(model)}, {tokens} tokens")
    handles = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", lw=0.3, label=label)
        for label, color, hatch in looks.values()
    ]
    notes = say("figures.j2", "stages_notes", dtype=dtype, eager=any(bar.eager for bar in measured))
    return layout.finish(figure, handles, notes, caption.source(study))


def _panel(panel: Axes, bars: dict[str, Bar], labels: list[str], looks: dict[str, tuple[str, str, str]]) -> None:
    for place, label in enumerate(labels):
        if label not in bars:
            panel.text(0.02, place, "not published" if label.startswith("A100") else "no row", va="center",
                       color="#666666")  # fmt: skip
            continue
        bar = bars[label]
        total, start = sum(bar.stages.values()), 0.0
        for stage in (stage for stage in looks if stage in bar.stages):
            _, color, hatch = looks[stage]
            share = bar.stages[stage] / total
            panel.barh(place, share, 0.78, start, color=color, hatch=hatch, edgecolor="white", linewidth=0.3,
                       alpha=EAGER_ALPHA if bar.eager else 1)  # fmt: skip
            if stage == EXPERTS:
                panel.text(
                    start + share / 2, place, f"{share:.0%} of {_time(total)}", ha="center", va="center", bbox=BOX
                )
            start += share
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("share of the stages' sum")
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.grid(False)


BOX = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}


def _time(latency_us: float) -> str:
    return f"{latency_us / 1000:.1f} ms" if latency_us >= 1000 else f"{latency_us:.0f} µs"


def _shares(bars: list[Bar]) -> pd.Series:
    """The share of the expert FFN, of bars that the host does not launch stage by stage if there are such."""
    chosen = [bar for bar in bars if not bar.eager] or bars
    return pd.Series([100 * bar.stages.get(EXPERTS, 0.0) / sum(bar.stages.values()) for bar in chosen], dtype=float)


def _measured(rows: pd.DataFrame) -> list[Bar]:
    """One bar for each pipeline and case, in the launch mode with the smaller sum of those that have all stages."""
    bars: list[Bar] = []
    several = rows["tokens"].nunique() > 1
    names = [*PIPELINES, *(name for name in compare.systems(rows) if name not in PIPELINES)]
    for name in names:
        mine = rows[rows["implementation"] == name]
        for (tokens, _), group in mine.groupby(["tokens", "case_hash"]):
            timed = group[(group["status"] == "ok") & group["p50_us"].notna()]
            modes = {str(launch): dict(zip(mode["stage"], mode["p50_us"])) for launch, mode in timed.groupby("launch")}
            whole = [launch for launch in modes if len(modes[launch]) == timed["stage"].nunique()]
            if whole:
                launch = min(whole, key=lambda mode: (sum(modes[mode].values()), compare.LAUNCH_ORDER[mode]))
                label = PIPELINES.get(name, style.look(name).label) + (f", {tokens} tokens" if several else "")
                bars.append(Bar(f"{label} ({launch})", modes[launch], launch == "eager"))
    return bars


def _published(model: str) -> list[Bar]:
    """The paper's bars of a model: a variant for which it gives every stage."""
    table = published.stages()
    table = table[table["model"] == model]
    bars: list[Bar] = []
    for variant in VARIANTS:
        rows = table[table["variant"].isin([variant, "both"])]
        if (rows["variant"] == variant).any():
            bars.append(Bar(f"A100: {variant}", dict(zip(rows["stage"], rows["p50_us"]))))
    return bars


def _looks(stages: list[str]) -> dict[str, tuple[str, str, str]]:
    """The look of each stage that occurs, the listed ones first and the others as they come."""
    looks = {stage: look for stage, look in STAGES.items() if stage in stages}
    others = [stage for stage in dict.fromkeys(stages) if stage not in STAGES]
    return looks | {stage: (stage, *OTHERS[index % len(OTHERS)]) for index, stage in enumerate(others)}
