"""The forecast of a sweep, against what the committed studies took."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime

import pytest

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.sweeping import overrides
from tritonmoe_bench.experiments.table import store

PASS = ("experts", "headline", "decode", "fusion", "heights", "stages", "energy", "throughput", "skew")
"""The studies whose record spans one pass; those of traffic were taken in parts over a day."""


@pytest.mark.parametrize("study", PASS)
def test_a_study_takes_no_longer_than_its_forecast_and_no_absurdly_shorter_time(study):
    record = store.read_json(ROOT / "results" / "nvidia-h200" / f"{study}.json")
    began, ended = (datetime.fromisoformat(record[name].rstrip("Z")) for name in ("started_utc", "finished_utc"))
    took = (ended - began).total_seconds() / 60
    forecast = overrides.planned_job([f"study={study}"]).plan.minutes()
    assert took <= forecast <= 5 * took


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
