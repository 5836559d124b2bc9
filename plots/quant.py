"""`fast` against the field with weights of fewer bits: its speed over every other system that runs their format."""

from __future__ import annotations

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis.results import Results

from .parts import against_field

NAME = "quant"
TITLE = "Packed weights: speed of fast relative to every other system (above 1: fast is faster)"
STUDIES = ("quant",)


def draw(results: Results) -> Figure:
    study = results.study("quant")
    rows = study.rows[study.rows["quant"] != "none"]
    if rows.empty:
        raise study.lacks("row with packed weights")
    return against_field.sheet(study, rows, TITLE)
