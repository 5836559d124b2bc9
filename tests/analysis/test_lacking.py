"""Systems of a study without a row at points that others have."""

import pandas as pd

from tritonmoe_bench.experiments.analysis.lacking import lacking
from tritonmoe_bench.experiments.sweeping.overrides import planned_job


def rows_of(study, *without):
    plan = planned_job([f"study={study}"]).plan
    pairs = [(case.case_hash, name) for name in plan.implementations for case in plan.cases_of(name)]
    rows = pd.DataFrame(pairs, columns=["case_hash", "implementation"])
    return rows[~rows["implementation"].isin(without)]


def test_a_run_that_was_cut_lacks_the_systems_that_it_did_not_reach():
    assert lacking("fusion", rows_of("fusion")).empty
    [missing] = lacking("fusion", rows_of("fusion", "fast")).to_dict("records")
    points = rows_of("fusion")["case_hash"].nunique()
    models = tuple({case.model: None for case in planned_job(["study=fusion"]).plan.cases_of("fast")})
    assert missing == {"implementation": "fast", "quant": "none", "points": points, "planned": points, "models": models}


def test_of_a_system_that_ran_at_some_points_the_others_are_counted():
    rows = rows_of("fusion")
    left = rows.drop(rows.index[rows["implementation"] == "fast"][0])
    [missing] = lacking("fusion", left).to_dict("records")
    assert (missing["points"], missing["planned"], len(missing["models"])) == (1, rows["case_hash"].nunique(), 1)


def test_points_that_no_system_has_are_no_gap_between_systems():
    rows = rows_of("fusion")
    assert lacking("fusion", rows[rows["case_hash"] == rows["case_hash"].iloc[0]]).empty
    assert lacking("a study of somebody else", rows).empty
