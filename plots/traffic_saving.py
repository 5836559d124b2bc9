"""Share of memory traffic that fusing saves, against tokens: a panel an accounting, a line a model."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from . import caption, data, layout, published, style
from .traffic_data import ACCOUNTINGS, saving

NAME = "traffic_saving"
TITLE = "Memory traffic saved by fusing, against batch size"
STUDIES = ("traffic",)
LOOKS: tuple[tuple[str, str, style.Line], ...] = (
    ("#8f2d00", "o", "-"),
    ("#2f7fc1", "^", style.DASH),
    ("#111111", "s", style.DASHDOT),
    ("#9b72cf", "D", style.DOT),
)


def draw(results: data.Results) -> Figure:
    study = results.study("traffic")
    rows = study.rows[study.rows["method"] == "model"]
    rows = rows[rows["dtype"] == min(rows["dtype"], default="")]
    cases = {
        str(key): case for key, case in rows.groupby("case_hash", sort=False) if saving(case, "issued") is not None
    }
    batches = rows[rows["case_hash"].isin(list(cases))].groupby("model")["tokens"].nunique()
    models = style.models_in_order(batches[batches > 1].index)
    if not models:
        raise data.MissingStudy(
            f"{study.path} has no model at two batch sizes: python experiments/sweep.py study=traffic"
        )
    figure, axes = layout.sheet(1, len(ACCOUNTINGS), 1.9, TITLE, sharey=True)
    claimed = published.claim("memory-traffic")["saving"]
    for panel, (accounting, label) in zip(axes, ACCOUNTINGS.items()):
        for index, model in enumerate(models):
            color, marker, line = LOOKS[index % len(LOOKS)]
            points = sorted(
                (case["tokens"].iloc[0], saving(case, accounting))
                for case in cases.values()
                if case["model"].iloc[0] == model
            )
            panel.plot(*zip(*points), color=color, marker=marker, ls=line)
        panel.axhline(claimed, color="#d0003c", lw=1.2, ls=style.DASH, zorder=1)
        panel.axhline(0, color=style.INK, lw=0.7, zorder=1)
        layout.power_axis(panel.xaxis, rows.loc[rows["model"].isin(models), "tokens"])
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.set_title(textwrap.fill(label, 30))
        panel.set_xlabel("tokens")
    axes[0].set_ylabel("traffic saved (%)")
    dtype = rows["dtype"].iloc[0]
    notes = (
        f"1 - bytes of the fused pipeline / bytes of the unfused one, {dtype}, by the closed-form model. "
        f"The paper claims {claimed:.0%}."
    )
    handles = [
        Line2D([], [], color=color, marker=marker, ls=line, label=style.model_label(model))
        for model, (color, marker, line) in zip(models, LOOKS)
    ]
    handles.append(Line2D([], [], color="#d0003c", lw=1.2, ls=style.DASH, label="the paper's claim"))
    return layout.finish(figure, handles, caption.text(study, notes))
