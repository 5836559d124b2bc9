"""Share of memory traffic that fusing saves, against tokens: one panel per accounting, one line per model."""

from __future__ import annotations

import itertools
import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from tritonmoe_bench.experiments.analysis import names
from tritonmoe_bench.experiments.analysis.names import PAPER, UNFUSED
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.analysis.traffic import ACCOUNTINGS, savings, uncounted
from tritonmoe_bench.experiments.analysis.traffic_load import load

from .parts import caption, layout, style
from .parts.style import MODEL_LOOKS

NAME = "traffic_saving"
TITLE = "Memory traffic saved by fusing, against batch size"
STUDIES = ("traffic",)
CLAIM = "#d0003c"


def draw(results: Results) -> Figure:
    traffic = load(results)
    rows = traffic.rows[
        traffic.rows["implementation"].isin([PAPER, UNFUSED]) & (traffic.rows["method"] != "interpreter")
    ]
    rows = rows[rows["dtype"] == min(rows["dtype"], default="")]
    saved = savings(rows)
    batches = saved.groupby("model")["tokens"].nunique()
    models = names.models_in_order(batches[batches > 1].index)
    if not models:
        raise traffic.lacks("model at two batch sizes")
    saved = saved[saved["model"].isin(models)]
    accountings = [name for name in ACCOUNTINGS if (saved["accounting"] == name).any()]
    columns = min(2, len(accountings)) if len(accountings) != 3 else 3
    figure, axes = layout.sheet(
        -(-len(accountings) // columns), columns, 1.9, TITLE, used=len(accountings), sharey=True
    )
    claimed = claim("memory-traffic")["saving"]
    looks = dict(zip(models, itertools.cycle(MODEL_LOOKS)))
    for index, (panel, accounting) in enumerate(zip(axes, accountings)):
        for model, (color, marker, line) in looks.items():
            here = saved[(saved["model"] == model) & (saved["accounting"] == accounting)].sort_values("tokens")
            panel.plot(here["tokens"], here["saving"], color=color, marker=marker, ls=line)
        panel.axhline(claimed, color=CLAIM, lw=1.2, ls=style.DASH, zorder=1)
        panel.axhline(0, color=style.INK, lw=0.7, zorder=1)
        layout.power_axis(panel.xaxis, saved["tokens"])
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.set_title(textwrap.fill(ACCOUNTINGS[accounting], 44 if columns == 2 else 30))
        panel.set_xlabel("tokens")
        if index % columns == 0:
            panel.set_ylabel("traffic saved (%)")
    notes = (
        f"1 - bytes of the fused pipeline / bytes of the unfused one, {rows['dtype'].iloc[0]}; under 0, fusing moves "
        "more. DRAM by the GPU's counters, the others by the closed-form model. "
        f"The paper claims {claimed:.0%}."
    )
    handles = [
        Line2D([], [], color=color, marker=marker, ls=line, label=names.model_label(model))
        for model, (color, marker, line) in looks.items()
    ]
    handles.append(Line2D([], [], color=CLAIM, lw=1.2, ls=style.DASH, label="the paper's claim"))
    return layout.finish(figure, handles, caption.of_traffic(traffic, notes, uncounted(rows)))
