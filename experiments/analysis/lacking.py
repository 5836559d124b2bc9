"""Which systems of a study have no row, not even one that says why, at points where others have been measured."""

from __future__ import annotations

from functools import cache

import pandas as pd

from ..sweeping.overrides import planned_job
from ..workload.arguments import PlanError


@cache
def _planned(study: str) -> pd.DataFrame:
    """A row for each case and system that the study's configuration names; none where there is no such study."""
    try:
        plan = planned_job([f"study={study}"]).plan
    except PlanError:
        return pd.DataFrame(columns=["case_hash", "implementation", "quant"])
    pairs = [(case.case_hash, name, case.quant) for name in plan.implementations for case in plan.cases_of(name)]
    return pd.DataFrame(pairs, columns=["case_hash", "implementation", "quant"]).drop_duplicates()


def lacking(study: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Columns: implementation, quant, points (at how many of the cases that `rows` have, in any status, its row is
    missing). Empty where a run was not cut short, or the study has another configuration now."""
    planned = _planned(study)
    planned = planned[planned["case_hash"].isin(rows["case_hash"])]
    known = planned.merge(rows[["case_hash", "implementation"]].drop_duplicates(), indicator=True, how="left")
    missing = known[known["_merge"] == "left_only"]
    return missing.groupby(["implementation", "quant"], as_index=False).agg(points=("case_hash", "nunique"))
