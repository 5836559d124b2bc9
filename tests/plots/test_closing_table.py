"""The table that a sweep prints last, for every kind of study, from made-up rows."""

from types import SimpleNamespace

import pytest

from tritonmoe_bench.experiments.sweeping import summary
from tritonmoe_bench.experiments.table import columns, store

KINDS = {"headline": "layer", "stages": "stages", "traffic": "traffic", "energy": "energy"}
SAYS = {
    "layer": "share of the measured limit",
    "stages": "expert_ffn",
    "traffic": "MB by one forward",
    "energy": "energy of one forward",
}


@pytest.mark.parametrize("study", KINDS)
def test_every_kind_of_study_has_a_closing_table(study, fixture_results):
    path = fixture_results / "fixture-gpu" / f"{study}.csv"
    rows = store.read(path, columns.KEYS[KINDS[study]])
    plan = SimpleNamespace(
        kind=KINDS[study],
        cases=[SimpleNamespace(case_hash=name) for name in rows["case_hash"].unique()],
        implementations=list(rows["implementation"].unique()),
    )
    table = summary.closing_table(path, plan)
    assert SAYS[plan.kind] in table
    assert f"{len(rows)} rows in {path}" in table
    for model in rows["model"].unique():
        assert model in table
    assert ("force=true runs them again" in table) == rows["status"].isin(["error", "timeout"]).any()
