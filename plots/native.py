"""How far `fast` is ahead of the best other system on the layers that models run, and which system that is."""

from __future__ import annotations

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis.results import Results

from .parts import lead

NAME = "native"
TITLE = "Lead of fast over the best other system on the models' own layers"
STUDIES = ("native",)


def draw(results: Results) -> Figure:
    study = results.study("native")
    rows = study.rows[study.rows["layer"] == "native"]
    if rows.empty:
        raise study.lacks("row of a native layer")
    return lead.sheet(study, rows, "native")
