"""Where fusing could save what the paper claims: by shape and rows per expert, of all tensors and of activations alone.

Each address counts once per stage. Router, routing and schedule are left out: under 1 % at the shapes drawn.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from tritonmoe_bench.experiments.analysis import names
from tritonmoe_bench.experiments.analysis.names import PAPER
from tritonmoe_bench.experiments.analysis.published import claim
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.analysis.traffic_load import load

from .parts import caption, layout, style
from .parts.style import MODEL_LOOKS

NAME = "traffic_where"
TITLE = "Where fusing gate and up can save memory traffic"
STUDIES = ("traffic",)
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
MARKED = (512, 4096)
TOP_K_OF_MAP = 4
SHOWN_TOP_K = (1, 2, 4, 8)
CLAIM = "#d0003c"


def possible_saving(rows_over_hidden, ffn_over_hidden, top_k, weights: bool = True):
    """Share of the unfused bytes that fusing takes away; arguments broadcast.

    rows_over_hidden: rows of an active expert over hidden_dim; ffn_over_hidden: ffn_dim over hidden_dim. Per row and
    in units of hidden_dim, gate and up are written and read (4 ffn) and the permuted row is read a second time; the
    unfused pipeline also moves SiLU(gate) x up twice, the permuted row three times, the expert's output twice, and for
    each token x twice and y once. Weights are 3 x hidden x ffn per expert.
    """
    rows, ratio = np.asarray(rows_over_hidden, dtype=float), np.asarray(ffn_over_hidden, dtype=float)
    unfused = rows * (6 * ratio + 5 + 3 / top_k)
    return rows * (4 * ratio + 1) / (unfused + (3 * ratio if weights else 0))


def draw(results: Results) -> Figure:
    traffic = load(results)
    rows = traffic.rows
    rows = rows[(rows["method"] == "model") & (rows["status"] == "ok") & (rows["implementation"] == PAPER)]
    shapes = rows.drop_duplicates("case_hash")
    models = [name for name in names.models_in_order(shapes["model"]) if (shapes["model"] == name).any()]
    models = [name for name in models if shapes.loc[shapes["model"] == name, "hidden_dim"].iloc[0] >= 1024]
    if not models:
        raise traffic.lacks("model of the paper's pipelines at a shape of a real layer")
    claimed = claim("memory-traffic")["saving"]
    figure, (plane, curves) = layout.sheet(1, 2, 2.7, TITLE)

    across, up = np.logspace(-4, 2, 200), np.logspace(-1, 1, 160)
    surface = possible_saving(*np.meshgrid(across, up), TOP_K_OF_MAP)
    filled = plane.contourf(across, up, surface, [0, *LEVELS, 0.67], cmap="Greys", alpha=0.75)
    plane.contour(across, up, surface, [claimed], colors=CLAIM, linewidths=1.4, linestyles="--")
    bar = figure.colorbar(filled, ax=plane, pad=0.02, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("bytes saved, of all (%)")
    plane.set(xscale="log", yscale="log")
    plane.set_xlabel("rows of an expert / hidden size (ratio)")
    plane.set_ylabel("ffn size / hidden size (ratio)")
    plane.set_title("weights and activations")

    ratios = np.logspace(-1, 1, 100)
    for top_k, line in zip(SHOWN_TOP_K, ("-", style.DASH, style.DASHDOT, style.DOT)):
        curves.plot(ratios, possible_saving(1, ratios, top_k, weights=False), color="#888888", ls=line, lw=1)
    curves.axhline(claimed, color=CLAIM, lw=1.2, ls=style.DASH, zorder=1)
    curves.set_xscale("log")
    curves.set_ylim(0, 0.7)
    curves.yaxis.set_major_formatter(PercentFormatter(1))
    curves.set_xlabel("ffn size / hidden size (ratio)")
    curves.set_ylabel("bytes saved, of activations (%)")
    curves.set_title("activations alone, any batch")

    handles = []
    for index, name in enumerate(models):
        color, marker, _ = MODEL_LOOKS[index % len(MODEL_LOOKS)]
        first = shapes[shapes["model"] == name].iloc[0]
        ratio = first["ffn_dim"] / first["hidden_dim"]
        tokens = np.array(MARKED)
        per_expert = tokens * first["top_k"] / first["num_experts"] / first["hidden_dim"]
        plane.plot(per_expert, [ratio] * len(tokens), color=color, marker=marker, ls="-", lw=0.8)
        for place, count in zip(per_expert, tokens):
            plane.annotate(f"{count}", (place, ratio), (0, 4), textcoords="offset points", ha="center", color=color)
        saved = possible_saving(1, ratio, first["top_k"], weights=False)
        curves.plot([ratio], [saved], color=color, marker=marker, ls="none")
        handles.append(
            Line2D([], [], color=color, marker=marker, label=f"{names.model_label(name)}, top-{first['top_k']}")
        )
    handles += [
        Line2D([], [], color="#888888", ls=line, lw=1, label=f"top-{top_k}")
        for top_k, line in zip(SHOWN_TOP_K, ("-", style.DASH, style.DASHDOT, style.DOT))
    ]
    handles.append(Line2D([], [], color=CLAIM, lw=1.2, ls=style.DASH, label="the paper's claim"))
    notes = (
        "Bytes of the unfused pipeline that the fused one does not move, each address once a stage (caches absorb "
        f"every repetition), by the closed form; left for top-{TOP_K_OF_MAP}, as top-k moves the contours little. "
        f"Marks: the models at {MARKED[0]} and {MARKED[1]} tokens spread evenly over the experts. "
        f"{claimed:.0%} of all bytes: "
        + "; ".join(_reached(shapes[shapes["model"] == name].iloc[0], claimed) for name in models)
        + "."
    )
    return layout.finish(figure, handles, caption.of_traffic(traffic, notes))


def tokens_needed(saving: float, shape: pd.Series) -> float:
    """Tokens, spread evenly over the experts, at which fusing saves that share of all bytes; infinite if at none."""
    ratio = shape["ffn_dim"] / shape["hidden_dim"]
    gain = 4 * ratio + 1 - saving * (6 * ratio + 5 + 3 / shape["top_k"])
    rows = saving * 3 * ratio / gain * shape["hidden_dim"] if gain > 0 else np.inf
    return rows * shape["num_experts"] / shape["top_k"]


def _reached(shape: pd.Series, saving: float) -> str:
    tokens = tokens_needed(saving, shape)
    when = f"from {tokens:,.0f} tokens on" if np.isfinite(tokens) else "at no batch size"
    return f"{names.model_label(shape['model'])} {when}"
