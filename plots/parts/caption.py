"""The small print under each figure: which rows it was drawn from, and which of its points need a second look."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.lacking import lacking
from tritonmoe_bench.experiments.analysis.names import in_order, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.table.limits import BELOW_MARK, below_limit

from . import style

FASTER = "Each system in its faster launch mode; open marks: eager, the others in a CUDA graph."


def notes(study: Study, *sentences: str) -> str:
    """The sentences in one paragraph, and in others which systems the study lacks, and which of its latencies lie below
    the measured limit."""
    return "\n".join(filter(None, [" ".join(filter(None, sentences)), lacking_text(study), below_text(study.rows)]))


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
    """Which systems the study has not run at points where it has run others, by format; empty without any."""
    missing = lacking(study.name, study.rows)
    where = [
        f"{', '.join(style.look(name).label for name in in_order(group['implementation']))}"
        f" ({'16 bits' if quant == 'none' else str(quant)})"
        for quant, group in missing.groupby("quant")
    ]
    return f"Not run yet at some of these points: {'; '.join(where)}." if where else ""


def below_text(rows: pd.DataFrame) -> str:
    """Which systems have latencies below the measured limit, and of which models; empty without any."""
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
    return f"{BELOW_MARK} Some latencies lie below the measured limit and need a second look: {', '.join(where)}."
