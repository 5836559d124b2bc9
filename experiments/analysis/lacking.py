"""Which systems of a study have no row, not even one that says why, at points where others have been measured."""

from __future__ import annotations

from functools import cache

import pandas as pd

from ..sweeping.overrides import planned_job
from ..workload.config import names

COLUMNS = ["case_hash", "implementation", "quant", "model"]


@cache
def _planned(study: str) -> pd.DataFrame:
    """A row for each case and system that the study's configuration names; none where there is no such study."""
    if study not in names("study"):
        return pd.DataFrame(columns=COLUMNS)
    plan = planned_job([f"study={study}"]).plan
    planned = [
        (case.case_hash, name, case.quant, case.model) for name in plan.implementations for case in plan.cases_of(name)
    ]
    return pd.DataFrame(planned, columns=COLUMNS).drop_duplicates()


def lacking(study: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Columns: implementation, quant, points (at how many of the cases that `rows` have, in any status, its row is
    missing), planned (of how many that the study has for it), models (those of the missing ones, as a tuple). Empty
    where a run was not cut short, or the study has another configuration now."""
    planned = _planned(study)
    planned = planned[planned["case_hash"].isin(rows["case_hash"])]
    known = planned.merge(rows[["case_hash", "implementation"]].drop_duplicates(), indicator=True, how="left")
    by = ["implementation", "quant"]
    known = known.assign(planned=known.groupby(by)["case_hash"].transform("nunique"))
    missing = known[known["_merge"] == "left_only"]
    return missing.groupby(by, as_index=False).agg(
        points=("case_hash", "nunique"),
        planned=("planned", "first"),
        models=("model", lambda names: tuple(names.unique())),
    )
