"""The traffic rows of a device, and those that are the same on every machine beside them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pandas as pd

from ..table import columns
from ..table.provenance import INTERPRETER
from .results import KINDS, MissingStudy, Results, Study
from .traffic import COUNTERS

FORWARD = ["case_hash", "implementation", "method"]
"""What tells one counted forward from another."""
TO_COUNT = "python experiments/sweep.py study=traffic counts without a GPU, study=counters on one"


@dataclass(frozen=True)
class Traffic:
    """rows: of all `studies`; studies: the device's, and the interpreter's for the methods that need no GPU."""

    rows: pd.DataFrame
    studies: list[Study]

    def lacks(self, what: str) -> MissingStudy:
        """The error of a figure that these rows are not enough for."""
        return MissingStudy(f"{self.studies[0].path} has no {what}: {TO_COUNT}")


def load(results: Results, method: str | None = None) -> Traffic:
    """Each forward by each method from one study: the device's if it could count there, else the interpreter's.

    method: the only one that is wanted. Raises MissingStudy if there are no traffic rows at all.
    """
    studies = [results.study("traffic")]
    if studies[0].path.relative_to(results.root).parts[0] != INTERPRETER:
        with contextlib.suppress(MissingStudy):
            studies.append(Results(results.root, INTERPRETER).study("traffic"))
    frames = [study.rows.assign(source=source) for source, study in enumerate(studies)]
    frames[1:] = [frame[frame["method"] != COUNTERS] for frame in frames[1:]]
    rows = pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)
    rows = rows.reindex(columns=[*columns.names(KINDS["traffic"].columns), "source"])
    first = rows.assign(failed=rows["status"] != "ok").sort_values(["failed", "source"], kind="stable")
    chosen = first.groupby(FORWARD)["source"].transform("first").sort_index()
    rows = rows[rows["source"] == chosen]
    rows = rows if method is None else rows[rows["method"] == method]
    used = [study for source, study in enumerate(studies) if (rows["source"] == source).any()] or studies[:1]
    return Traffic(rows.drop(columns="source").reset_index(drop=True), used)
