"""Roofline with measured roofs and measured bytes: operations a second against operations a byte of DRAM traffic.

Bytes are the counters' (traffic study), times and both roofs those of the headline study: the largest rate at which
`stream` read weights, and the rate of a dense GEMM.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import LIMIT, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results
from tritonmoe_bench.experiments.analysis.traffic import COUNTERS, totals, uncounted
from tritonmoe_bench.experiments.analysis.traffic_load import load

from .parts import caption, layout, style

NAME = "roofline"
TITLE = "Roofline: measured rates, measured bytes, measured roofs"
STUDIES = ("headline", "traffic")
LABELLED = ("fast", "paper_fused_graph")
"""Systems beside whose points the tokens stand; the first that there is."""


def draw(results: Results) -> Figure:
    traffic, headline = load(results, COUNTERS), results.study("headline")
    points = place(headline.rows, totals(traffic.rows))
    if points.empty:
        raise traffic.lacks("case of the headline study by hardware counters")
    bandwidth = stream_rate(headline.rows)
    dtype = points["dtype"].iloc[0]
    matrix = headline.record.get("matrix_tflops", {}).get(dtype)
    if bandwidth is None or not matrix:
        raise MissingStudy(f"{headline.path} has no measured roofs: python experiments/sweep.py study=headline")
    models = models_in_order(points["model"])
    columns = min(3, len(models))
    figure, axes = layout.sheet(
        -(-len(models) // columns), columns, 2.7, TITLE, used=len(models), sharex=True, sharey=True
    )
    reach = np.geomspace(points["intensity"].min() / 2, 2 * max(points["intensity"].max(), matrix / bandwidth))
    for panel, model in zip(axes, models):
        panel.plot(reach, np.minimum(reach * bandwidth, matrix), color=style.INK, lw=1.2, zorder=1.5)
        here = points[points["model"] == model]
        for name in compare.systems(here):
            rows = here[here["implementation"] == name].sort_values("tokens")
            layout.plot_system(panel, name, rows["intensity"], rows["tflops"], rows["launch"] == "eager")
        named = next((name for name in LABELLED if (here["implementation"] == name).any()), None)
        for tokens, place_of in _labels(here[here["implementation"] == named]):
            panel.annotate(tokens, place_of, (-3, 4), textcoords="offset points", ha="right", color="#444444")
        panel.set(xscale="log", yscale="log")
        layout.log_labels(panel.xaxis, (1,))
        layout.log_labels(panel.yaxis, (1,))
        panel.set_title(model_label(model))
        panel.set_xlabel("operations / DRAM byte (FLOP/B)")
    axes[0].set_ylabel("rate of operations (TFLOP/s)")
    notes = (
        f"Roofs of this GPU: {bandwidth:.2f} TB/s, the best of stream in the headline study; {matrix:.0f} TFLOP/s, a "
        f"dense {dtype} GEMM. Numbers at points: tokens. DRAM bytes by the counters in the traffic study, L2 emptied "
        f"before the forward; latencies of the headline study at the same case, skew 0. {layout.FASTER}"
    )
    missing = unplaced(headline.rows, traffic.rows, points)
    handles = layout.legend_of(points["implementation"], points.head(0))
    return layout.finish(figure, handles, caption.of_traffic(traffic, notes, missing, headline))


def _labels(rows: pd.DataFrame) -> Iterator[tuple[str, tuple[float, float]]]:
    """Tokens and where they stand; those of points that nearly share a place in one."""
    rows = rows.sort_values("tokens")
    near = rows["intensity"].diff().fillna(np.inf) < 0.2 * rows["intensity"]
    for _, group in rows.groupby((~near).cumsum()):
        first = group.iloc[0]
        yield ", ".join(f"{tokens}" for tokens in group["tokens"]), (first["intensity"], first["tflops"])


def place(headline: pd.DataFrame, counted: pd.DataFrame) -> pd.DataFrame:
    """One row per case and system that was both timed and counted, with `intensity` (FLOP per byte) and `tflops`."""
    times = compare.timed(headline, "best")
    times = times[times["implementation"] != LIMIT]
    points = times.merge(counted[["case_hash", "implementation", "bytes"]], on=["case_hash", "implementation"])
    return points.assign(intensity=points["flops"] / points["bytes"], tflops=points["flops"] / points["p50_us"] / 1e6)


def unplaced(headline: pd.DataFrame, counted: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Which systems have no point at a case of the figure: the pairs of case and system, with status and reason."""
    case = ["case_hash", "model", "tokens", "dtype"]
    names = {*headline["implementation"], *counted["implementation"]} - {LIMIT}
    pairs = (
        points[case].drop_duplicates("case_hash").merge(pd.DataFrame({"implementation": sorted(names)}), how="cross")
    )
    key = ["case_hash", "implementation"]
    pairs = pairs[~pairs[key].apply(tuple, axis=1).isin(set(points[key].apply(tuple, axis=1)))]
    why = [uncounted(counted), compare.missing(headline)]
    reasons = pd.concat(why)[[*key, "status", "reason"]].drop_duplicates(key)
    pairs = pairs.merge(reasons, on=key, how="left")
    known = pairs["implementation"].isin(counted["implementation"])
    lacks = known.map({True: "timed at no point of the headline study", False: "its bytes are not counted"})
    return pairs.assign(status=pairs["status"].fillna("not run"), reason=pairs["reason"].fillna(lacks))


def stream_rate(headline: pd.DataFrame) -> float | None:
    """The largest rate at which `stream` read the active experts' weights, in TB/s."""
    rows = compare.timed(headline, "best")
    rows = rows[rows["implementation"] == LIMIT]
    sizes = rows["active_experts"] * 6 * rows["hidden_dim"] * rows["ffn_dim"]
    return float((sizes / rows["p50_us"]).max() / 1e6) if len(rows) else None
