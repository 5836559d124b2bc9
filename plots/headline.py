"""How far `fast` is ahead of the best other system at each point of the headline study, and which system that is."""

from __future__ import annotations

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.results import Results

from .parts import lead

NAME = "headline"
TITLE = "Lead of fast over the best other system"
STUDIES = ("headline",)


def draw(results: Results) -> Figure:
    study = results.study("headline")
    return lead.sheet([study], compare.plain(study.rows), "headline")
