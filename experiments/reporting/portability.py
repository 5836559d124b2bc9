"""The report's tables of portability: kernels by targets, as compiled with no GPU, and where the tests ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ..table.outcomes import OUTCOMES
from ..targets.gpus import TARGETS
from .tables import Table

GRID = "paper_grid"


def matrix_table(frame: pd.DataFrame) -> Table | None:
    """Kernels by targets: how many configurations compile, fit, do not spill and reach the matrix units, of how many;
    None for no rows. frame: results/portability.csv, or that of the authors' code."""
    if frame.empty:
        return None
    targets = [target for target in TARGETS if target in set(frame["target"])]
    body = [
        [str(kernel), *(_cell(rows[rows["target"] == target]) for target in targets)]
        for kernel, rows in frame.groupby("kernel")
    ]
    body.append(["all", *(_cell(frame[frame["target"] == target]) for target in targets)])
    header = ["kernel", *(f"{TARGETS[target].label} ({target})" for target in targets)]
    return Table("", header, body, text=range(len(header)))


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "not launched"
    failed = rows.loc[rows["status"] != "ok", "status"].value_counts()
    reasons = ", ".join(f"{count} {str(status).replace('_', ' ')}" for status, count in failed.items())
    return f"{len(rows) - failed.sum()} of {len(rows)} ok" + (f"; {reasons}" if reasons else "")


Tests = Mapping[str, Mapping[str, Any]]
"""As of `claims.Outcomes`."""


def outcomes_table(tests: Tests, authors: Tests) -> Table | None:
    """Outcomes by where they ran: of the paper's cases and of our tests on the code here, and of the authors' tests on
    theirs; None if none is recorded."""
    body = []
    for where in sorted({*tests, *authors}):
        record = tests.get(where, {})
        groups = (record.get(GRID), record.get("ours"), authors.get(where, {}).get(GRID))
        if any(groups):
            body.append([where, *map(_outcomes, groups)])
    header = ["ran on", "the paper's cases", "tests of our own", "the authors' tests, on their code"]
    return Table("", header, body, text=range(4)) if body else None


def failures(every: Iterable[Tests]) -> dict[str, list[str]]:
    """By where they ran and the commit, the tests that failed there."""
    failed: dict[str, list[str]] = {}
    for where, record in (told for tests in every for told in sorted(tests.items())):
        for counts in record.values():
            if counts.get("failures"):
                failed.setdefault(f"{where} at {counts['commit'][:10]}", []).extend(counts["failures"])
    return failed


def _outcomes(counts: Mapping[str, Any] | None) -> str:
    if not counts:
        return "not recorded"
    return ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name] or name == "passed")
