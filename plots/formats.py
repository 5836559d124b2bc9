"""What a weight format buys: latency against tokens in each format of a model, of `fast` and of the best other system.

Uniform routing. The dotted line is the reading of the packed weights alone; the errors stand under the panels.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tritonmoe_bench.experiments.analysis import compare, names
from tritonmoe_bench.experiments.analysis.headline import peers
from tritonmoe_bench.experiments.analysis.names import EIGHT_BITS, FAST, LIMIT
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting.texts import say
from tritonmoe_bench.experiments.table.errors import error_text

from .parts import caption, layout, style

NAME = "formats"
TITLE = "Latency by weight format"
STUDIES = ("quant",)
PLAIN = "none"
COLORS = {PLAIN: "#6b6b6b", "fp8_block": "#7a3fb0", "mxfp4": "#00684a", "int4": "#2f6fc1", "int4_g32": "#0b2f66"}
LABELS = {PLAIN: "16 bits"}
KINDS = (("fast", "*", "-"), ("best other system", "o", style.DASH), ("reading the weights", "None", style.DOT))
"""Label, marker and line of each kind of row, in the order of the legend."""


def draw(results: Results) -> Figure:
    study = results.study("quant")
    rows = compare.plain(study.rows, formats=True)
    best = lines_of(rows[rows["skew"] == rows["skew"].min()])
    if best[best["kind"] != KINDS[2][0]].empty:
        raise study.lacks("latency of fast or of another system")
    models, formats = names.models_in_order(best["model"]), [name for name in COLORS if name in set(best["quant"])]
    title = say("figures.j2", "by_format", gains=gains(best), shares=_shares(best))
    across = layout.across(len(models))
    figure, axes = layout.sheet(-(-len(models) // across), across, 1.75, title, used=len(models), sharex=True)
    for index, (panel, model) in enumerate(zip(axes, models)):
        here = best[best["model"] == model]
        for quant in formats:
            for kind, marker, line in KINDS:
                points = here[(here["quant"] == quant) & (here["kind"] == kind)].sort_values("tokens")
                look = style.Look(f"{quant} {kind}", kind, COLORS[quant], marker, line)
                layout.plot_line(panel, look, points["tokens"], points["p50_us"])
        layout.power_axis(panel.xaxis, best["tokens"])
        panel.set_yscale("log")
        layout.log_labels(panel.yaxis)
        panel.set_title(names.model_label(model))
        if index % across == 0:
            panel.set_ylabel("latency (µs)")
    layout.bottom(axes, across, "tokens")
    notes = say("figures.j2", "by_format_notes", dtype=rows["dtype"].iloc[0], errors=errors(best),
                eight=EIGHT_BITS in set(best["implementation"]))  # fmt: skip
    return layout.finish(figure, _handles(formats), caption.notes(study, notes, shown=best), caption.source(study))


def lines_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of every line, each with its `kind`: at each case the faster of `fast` and `fast_a8`, the fastest of the
    others, and the limit."""
    timed = compare.timed(rows, "best")
    parts = [
        compare.fastest_first(timed[timed["implementation"].isin(systems)]).drop_duplicates("case_hash")
        for systems in ([FAST, EIGHT_BITS], peers(timed), [LIMIT])
    ]
    return pd.concat([part.assign(kind=kind) for part, (kind, *_) in zip(parts, KINDS)], ignore_index=True)


def gains(best: pd.DataFrame) -> dict[str, pd.Series]:
    """By format: least latency in 16 bits over the least in the format, at each model and batch size with both."""
    least = best[best["kind"] != KINDS[2][0]].groupby(["model", "tokens", "quant"])["p50_us"].min().unstack("quant")
    if PLAIN not in least:
        return {}
    ratios = {quant: (least[PLAIN] / least[quant]).dropna() for quant in COLORS if quant in least and quant != PLAIN}
    return {quant: ratio for quant, ratio in ratios.items() if len(ratio)}


def errors(best: pd.DataFrame) -> dict[str, list[str]]:
    """By format, the largest error over PyTorch's own of every system that a line shows, with its activations."""
    known = best.assign(over=best["rel_error"] / best["torch_rel_error"]).dropna(subset="over").sort_values("over")
    worst = known.drop_duplicates(["quant", "implementation"], keep="last")
    return {
        str(quant): [f"{style.look(str(row.implementation)).label} {error_text(row)}" for row in group.itertuples()]
        for quant, group in worst.sort_values("implementation").groupby("quant")
    }


def _shares(best: pd.DataFrame) -> pd.Series:
    """Latency of the fastest at each packed point over the reading of its weights."""
    packed = best[(best["quant"] != PLAIN) & (best["kind"] != KINDS[2][0]) & best["stream_us"].notna()]
    fastest = packed.sort_values("p50_us", kind="stable").drop_duplicates("case_hash")
    return fastest["p50_us"] / fastest["stream_us"]


def _handles(formats: list[str]) -> list[Artist]:
    colours = [Line2D([], [], color=COLORS[name], lw=2.5, label=LABELS.get(name, name)) for name in formats]
    kinds = [Line2D([], [], color=style.INK, marker=marker, ls=line, label=kind) for kind, marker, line in KINDS]
    return [*colours, *kinds]
