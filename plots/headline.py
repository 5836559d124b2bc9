"""`fast` against the field in 16 bits: its speed over every other system against tokens, by model and skew."""

from __future__ import annotations

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import against_field

NAME = "headline"
TITLE = "Speed of fast relative to every other system (above 1: fast is faster)"
STUDIES = ("headline",)


def draw(results: Results) -> Figure:
    study = results.study("headline")
    return against_field.sheet(study, compare.plain(study.rows), TITLE)
