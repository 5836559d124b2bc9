"""How far `fast` is ahead of the best other system as models are served: on packed weights, and on their own layers.

The panels of a study that was not run are left out.
"""

from __future__ import annotations

import contextlib

import pandas as pd
from matplotlib.figure import Figure

from tritonmoe_bench.experiments.analysis.results import MissingStudy, Results, Study

from .parts import lead

NAME = "served"
TITLE = "Lead of fast over the best other system on packed weights and on the models' own layers"
STUDIES = ("quant", "native")


def draw(results: Results) -> Figure:
    parts: list[tuple[Study, pd.DataFrame]] = []
    for name in STUDIES:
        with contextlib.suppress(MissingStudy):
            study = results.study(name)
            rows = study.rows[(study.rows["quant"] != "none") | (study.rows["layer"] == "native")]
            parts += [(study, rows)] if len(rows) else []
    if not parts:
        raise results.study(STUDIES[0]).lacks("row with packed weights")
    return lead.sheet([study for study, _ in parts], pd.concat([rows for _, rows in parts]), NAME)
