"""How far `fast` is ahead of the best other system that runs the same packed weights, and which system that is."""

from __future__ import annotations

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis.results import Results

from .parts import lead

NAME = "quant"
TITLE = "Lead of fast over the best other system on packed weights"
STUDIES = ("quant",)


def draw(results: Results) -> Figure:
    study = results.study("quant")
    rows = study.rows[study.rows["quant"] != "none"]
    if rows.empty:
        raise study.lacks("row with packed weights")
    return lead.sheet(study, rows, "quant")
