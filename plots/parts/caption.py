"""The small print under each figure: where it was measured, with what, when, and which points are missing and why."""

from __future__ import annotations

import re

import pandas as pd

from tritonmoe_bench.experiments.analysis import compare
from tritonmoe_bench.experiments.analysis.names import in_order, model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Study
from tritonmoe_bench.experiments.analysis.traffic_load import Traffic
from tritonmoe_bench.experiments.table.limits import BELOW_MARK, below_limit

from . import style

MAX_REASON = 110
MAX_GROUPS = 7


def text(study: Study, notes: str = "", missing: pd.DataFrame | None = None, latencies: bool = True) -> str:
    """`notes` on how to read the figure, what is missing of it, and the provenance of the study it was drawn from."""
    parts = [notes] if notes else []
    if latencies and (below := below_text(study.rows)):
        parts.append(below)
    if missing is not None and len(missing):
        parts.append(missing_text(missing))
    return "\n".join([*parts, provenance(study)])


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


def of_traffic(traffic: Traffic, notes: str, missing: pd.DataFrame | None = None, before: Study | None = None) -> str:
    """The caption of a figure that was drawn from traffic rows, and from the study `before`."""
    first, *rest = [before, *traffic.studies] if before else traffic.studies
    return "\n".join([text(first, notes, missing), *(provenance(study) for study in rest)])


def provenance(study: Study) -> str:
    """One line: device, software, commit, dates, study and run, from the rows and the JSON beside them."""
    rows = study.rows.sort_values("timestamp_utc", kind="stable")
    software = [f"{name} {_values(rows[name])}" for name in ("driver", "torch", "triton") if rows[name].notna().any()]
    if study.record.get("cuda"):
        software.insert(1, f"CUDA {study.record['cuda']}")
    of_megablocks = rows[rows["implementation"].map(lambda name: style.look(name).family) == "megablocks"]
    versions = _values(of_megablocks["implementation_version"])
    if versions:
        software.append(f"Megablocks {versions}")
    commits = ", ".join(dict.fromkeys(str(commit)[:7] for commit in rows["git_commit"].dropna()))
    dirty = " with uncommitted changes" if (rows["git_dirty"].astype(str) == "True").any() else ""
    days = sorted({str(stamp)[:10] for stamp in rows["timestamp_utc"]})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"{_values(rows['device'])}; {', '.join(software)}; commit {commits}{dirty}; {when} (UTC); "
        f"study {study.name}, run {rows['run_id'].iloc[0]}."
    )


def missing_text(missing: pd.DataFrame) -> str:
    """Systems, number of points, status and reason of what is missing, most points first."""
    groups = missing.assign(reason=missing["reason"].map(_short)).groupby(["status", "reason"], sort=False)
    parts = []
    for (status, reason), group in sorted(groups, key=lambda item: (-len(item[1]), item[0])):
        names = ", ".join(style.look(name).label for name in in_order(group["implementation"]))
        counts = group["implementation"].value_counts()
        each = len(counts) > 1 and counts.nunique() == 1
        number = int(counts.iloc[0]) if each else len(group)
        points = f"{number} point{'s' * (number > 1)}{' each' * each}"
        parts.append(f"{names}: {status} at {points} ({reason})")
    if len(parts) > MAX_GROUPS:
        rest = len(parts) - MAX_GROUPS
        parts = [*parts[:MAX_GROUPS], f"{rest} more reason{'s' * (rest > 1)} in the CSV"]
    return "× missing: " + "; ".join(parts) + "."


def _short(reason: object) -> str:
    line = re.sub(r"\s+", " ", str(reason)).strip().rstrip(".")
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1].rstrip() + "…"


def _values(column: pd.Series) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in column.dropna() if value != ""))
