"""The report's tables of portability: kernels by targets, as compiled with no GPU, and where the tests ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..targets.gpus import TARGETS
from .tables import Table

GROUPS = ("paper_grid", "ours")
OUTCOMES = ("passed", "failed", "skipped")


def matrix_table(frame: pd.DataFrame) -> Table | None:
    """Kernels by targets: how many configurations compile, fit, do not spill and reach the matrix units, of how many;
    None for no rows. frame: results/portability.csv."""
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


def outcomes_table(tests: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Outcomes of the paper's own cases and of our tests by where they ran; None if none is recorded."""
    body = [
        [where, *(_outcomes(record.get(group)) for group in GROUPS)]
        for where, record in sorted(tests.items())
        if record
    ]
    return Table("", ["ran on", "the paper's cases", "tests of our own"], body, text=range(3)) if body else None


def failures(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """By where they ran and the commit, the tests that failed there."""
    failed: dict[str, list[str]] = {}
    for where, record in sorted(tests.items()):
        for counts in record.values():
            if counts.get("failures"):
                failed.setdefault(f"{where} at {counts['commit'][:10]}", []).extend(counts["failures"])
    return failed


def _outcomes(counts: Mapping[str, Any] | None) -> str:
    if not counts:
        return "not recorded"
    return ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name] or name == "passed")
