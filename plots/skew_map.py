"""Map of (experts x skew): speed of the paper's pipelines relative to Megablocks, one column of panels per batch size.

One row of panels per comparison: of a pipeline, with a Megablocks path or the fastest of them, in a launch mode.
"""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import MEGABLOCKS
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import caption, layout, maps, style

NAME = "skew_map"
TITLE = "Throughput relative to Megablocks, by experts and skew"
STUDIES = ("skew",)


class Comparison(NamedTuple):
    """path: of Megablocks, or empty for the fastest at each point; launch: eager to eager, or best to best."""

    system: str
    path: str
    launch: str


COMPARISONS = (
    Comparison("paper_fused", "megablocks_sparse", "eager"),
    Comparison("paper_fused", "", "eager"),
    Comparison("paper_fused_graph", "", "best"),
)


def draw(results: Results) -> Figure:
    study = results.study("skew")
    every = compare.plain(study.rows)
    names = set(every["implementation"])
    paths = compare.family(every, "megablocks")
    study.require(dict.fromkeys(c.system for c in COMPARISONS), paths or MEGABLOCKS)
    comparisons = [c for c in COMPARISONS if c.system in names and (not c.path or c.path in names)]
    tokens = sorted(every["tokens"].unique())
    figure, axes = layout.sheet(len(comparisons), len(tokens), 1.95, TITLE)
    tables = [
        compare.to_best(compare.ratios(every, c.system, [c.path] if c.path else paths, c.launch)) for c in comparisons
    ]
    for index, panel in enumerate(axes):
        row, column = divmod(index, len(tokens))
        maps.draw_ratios(panel, every[every["tokens"] == tokens[column]], tables[row], "num_experts", "skew")
        panel.set_title(f"{tokens[column]} tokens")
        panel.set_xlabel("Zipf exponent")
        if column == 0:
            panel.set_ylabel(_label(comparisons[row]) + "\nexperts")
    compared = [name for name in names if name in paths or name in {c.system for c in comparisons}]
    missing = compare.missing(every[every["implementation"].isin(compared)])
    layer = every.iloc[0]
    notes = (
        f"{layer['dtype']}, hidden {layer['hidden_dim']}, ffn {layer['ffn_dim']}, top-{layer['top_k']}. In each cell: "
        "latency of Megablocks / latency of the pipeline; eager: both launched from the host, best: each side in its "
        "faster launch mode; best Megablocks: the fastest path at that point. Line: "
        f"where the ratio crosses 1. {maps.ENDS}"
    )
    handles = maps.legend(
        "the paper's pipeline", "Megablocks", any(len(table) < every["case_hash"].nunique() for table in tables)
    )
    return layout.finish(figure, handles, caption.text(study, notes, missing))


def _label(comparison: Comparison) -> str:
    over = style.look(comparison.path).label if comparison.path else "best Megablocks"
    return f"{style.look(comparison.system).label}\nover {over}\n({comparison.launch} / {comparison.launch})"
