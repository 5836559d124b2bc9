"""The small print under each figure: which rows it was drawn from, and which of its points need a second look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.lacking import lacking
from tritonmoe_bench.experiments.analysis.names import in_order, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.table.limits import BELOW_MARK, below_limit

from . import style

FEW_MODELS = 3
"""So many names of models are short enough for a caption."""


def notes(study: Study, *sentences: str, shown: pd.DataFrame | None = None) -> str:
    """The sentences in one paragraph, and in others which systems the study lacks, and which of the latencies lie below
    the measured limit. shown: the rows that the figure shows beside that limit, None where it does not show it."""
    below = "" if shown is None else below_text(shown)
    return "\n".join(filter(None, [" ".join(filter(None, sentences)), lacking_text(study), below]))


def source(*studies: Study) -> str:
    """One line: device, and of each study its file, run and commits. The report's table of provenance has the rest."""
    return "; ".join([", ".join(_devices(studies)), *map(_run, studies)])


def _devices(studies: Iterable[Study]) -> list[str]:
    return list(dict.fromkeys(str(name) for study in studies for name in study.rows["device"].dropna()))


def _run(study: Study) -> str:
    rows = study.rows.sort_values("timestamp_utc", kind="stable")
    commits = ", ".join(dict.fromkeys(str(commit)[:7] for commit in rows["git_commit"].dropna()))
    dirty = "+" if (rows["git_dirty"].astype(str) == "True").any() else ""
    return f"{study.name}.csv, run {rows['run_id'].iloc[0]}, commit {commits}{dirty}"


def lacking_text(study: Study) -> str:
    """At how many points, by format, the study has not run a system where it has run others, with the models if they
    are few; empty without any."""
    where = []
    for quant, group in lacking(study.name, study.rows).groupby("quant"):
        known = {str(one.implementation): one for one in group.itertuples()}
        places = [_place(name, known[name]) for name in in_order(known)]
        where.append(f"{', '.join(places)} in {'16 bits' if quant == 'none' else str(quant)}")
    return f"Not run yet: {'; '.join(where)}." if where else ""


def _place(name: str, missing: Any) -> str:
    models = [model_label(model) for model in models_in_order(missing.models)]
    which = f" ({', '.join(models)})" if len(models) <= FEW_MODELS else ""
    return f"{style.look(name).label} at {missing.points} of {missing.planned} points{which}"


def below_text(rows: pd.DataFrame) -> str:
    """Which systems have latencies below the measured limit, of which models; empty without any."""
    if not {"p50_us", "limit_us"} <= set(rows):
        return ""
    best = compare.timed(rows, "best")
    below = best[below_limit(best)]
    if below.empty:
        return ""
    where = []
    for name in in_order(below["implementation"]):
        models = models_in_order(below.loc[below["implementation"] == name, "model"])
        where.append(f"{style.look(name).label} ({', '.join(map(model_label, models))})")
    why = "either the limit was timed too long there, or work was left out"
    return f"{BELOW_MARK} Some latencies lie below the measured limit ({why}): {', '.join(where)}."
