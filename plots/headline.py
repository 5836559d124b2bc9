"""How far `fast` is ahead of the best other system at each point of the headline study, and which system that is."""

from __future__ import annotations

import contextlib

from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results

from .parts import lead

NAME = "headline"
TITLE = "Lead of fast over the best other system"
STUDIES = ("headline", "throughput")
"""The second measured some of the points again, which tells the noise between runs."""


def draw(results: Results) -> Figure:
    study = results.study("headline")
    again = None
    with contextlib.suppress(MissingStudy):
        again = results.study(STUDIES[1])
    return lead.sheet(study, compare.plain(study.rows), "headline", again)
