"""The forecast of a sweep, against what the committed studies took."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.measure.measurement import measurements
from tritonmoe_bench.experiments.reporting.again import minutes_of
from tritonmoe_bench.experiments.sweeping import overrides
from tritonmoe_bench.experiments.sweeping.plan import Plan
from tritonmoe_bench.experiments.table.current import read_run
from tritonmoe_bench.experiments.workload.case import Case

DEVICE = "nvidia-h200"
CASE = [field.name for field in fields(Case) if field.name != "facts"]


def committed(study: str):
    """The rows of the study on the device that most came in one go, those of one commit, and the plan that they are all
    of."""
    asked = overrides.planned_job([f"study={study}"]).plan
    kind = measurements()[asked.measurement.kind]
    rows, _ = read_run(ROOT / "results" / DEVICE / f"{study}.csv", kind)
    rows = rows[rows["git_commit"] == rows["git_commit"].mode()[0]]
    cases = {row["case_hash"]: Case(**{name: row[name] for name in CASE}) for row in rows.to_dict("records")}
    ran = rows.groupby("implementation")["case_hash"].agg(set)
    skipped = {name: frozenset(case.case_hash for case in cases.values()) - hashes for name, hashes in ran.items()}
    modes = list(rows[kind.mode_column].unique())
    return rows, Plan(study, kind, list(cases.values()), list(ran.index), modes, skipped)


@pytest.mark.parametrize(
    "study", ["experts", "headline", "decode", "fusion", "heights", "stages", "energy", "throughput"]
)
def test_a_study_takes_no_longer_than_its_forecast_and_no_absurdly_shorter_time(study):
    rows, plan = committed(study)
    took = minutes_of(rows)
    assert took <= plan.minutes() <= 6 * took


def test_the_readme_says_how_long_one_full_measurement_takes():
    [line] = re.findall(r"^ALL_STUDIES := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    conf = {path.stem for path in (ROOT / "conf" / "study").glob("*.yaml")}
    assert set(line.split()) == conf - {"adhoc", "smoke", "traffic"}
    minutes = sum(overrides.planned_job([f"study={study}"]).plan.minutes() for study in line.split())
    for file in ("README.md", "Makefile"):
        assert f"{minutes:.0f} minutes" in (ROOT / file).read_text(encoding="utf-8"), file


def test_a_dry_run_of_several_sweeps_ends_with_the_time_of_all():
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "sweep.py", "-m", "study=experts,stages", "dry_run=true"],
        capture_output=True,
        encoding="utf-8",
    )
    lines = done.stdout.splitlines()
    each = [overrides.planned_job([f"study={study}"]).plan.minutes() for study in ("experts", "stages")]
    assert [line.split(":")[0] for line in lines if line.startswith("study ")] == ["study experts", "study stages"]
    assert lines[-1] == f"all 2 sweeps, on a GPU: up to {sum(each):.0f} minutes"
