"""A run of other software than the committed one: a folder of its own, and which of them is read."""

import json

import pandas as pd
import pytest

from tritonmoe_bench.experiments.analysis.results import Results, default_device
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.table.current import newest
from tritonmoe_bench.experiments.table.run import Run, run_path
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import PlanError

ENVIRONMENT = {
    "device": "made-up-gpu", "device_uuid": "0", "driver": "580.1", "cuda": "13.0", "l2_bytes": 0, "memory_bytes": 0,
    "torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3", "git_commit": "0", "git_dirty": False,
}  # fmt: skip
CASES = [Case("tiny", 8, 2, 128, 256, tokens) for tokens in (1, 2, 4)]
FOLDER = "with-torch2.13.0-triton3.9.0-cuda13.0-driver580.1-python3.12.3"
NEW = {"torch": "2.13.0", "triton": "3.9.0"}


def measured(folder, cases=CASES, systems=("fast", "stream"), finish=True, p50=5.0, **changes):
    run = Run.open(folder, "throughput", Layer(), ENVIRONMENT | changes)
    for case in cases:
        for name in systems:
            run.put(case, [{"implementation": name, "launch": "graph", "status": "ok", "reason": "", "p50_us": p50,
                            "p20_us": p50, "p80_us": p50, "samples": 3, "flops": case.flops}])  # fmt: skip
    if finish:
        run.finish()
    return run


def test_the_first_run_stays_and_the_new_one_is_said(tmp_path, capsys):
    first = measured(tmp_path)
    text, record = first.path.read_text(encoding="utf-8"), first.path.with_suffix(".json").read_text(encoding="utf-8")
    del first
    second = measured(tmp_path, **NEW)
    home = tmp_path / "made-up-gpu" / "throughput.csv"
    assert second.path == home.parent / FOLDER / "throughput.csv"
    assert run_path(tmp_path, "throughput", ENVIRONMENT | NEW) == second.path
    assert run_path(tmp_path, "throughput", ENVIRONMENT) == home
    assert home.read_text(encoding="utf-8") == text
    assert home.with_suffix(".json").read_text(encoding="utf-8") == record
    assert not list(tmp_path.glob("*/archive"))
    said = capsys.readouterr().out
    assert f"note: {home} stays as it is" in said
    assert "torch 2.11.0 and 2.13.0, triton 3.6.0 and 3.9.0" in said


def test_a_run_of_other_software_goes_on_in_its_own_folder(tmp_path):
    measured(tmp_path)
    second = measured(tmp_path, CASES[:1], finish=False, **NEW)
    again = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT | NEW)
    assert again.record["run_id"] == second.record["run_id"]
    assert len(again.done("fast", ["graph"])) == 1
    del second, again
    Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT | NEW, new=True)
    assert len(list(tmp_path.glob(f"*/{FOLDER}/archive/*.csv.gz"))) == 1


def test_jobs_of_one_command_on_other_software_are_refused(tmp_path):
    first = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT, command="one")
    first.put(CASES[0], [{"implementation": "fast", "launch": "graph", "status": "oom", "reason": "full"}])
    with pytest.raises(PlanError, match=r"the jobs of this sweep differ in torch 2\.11\.0 and 2\.13\.0"):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT | NEW, command="one")


def read(folder):
    study = Results(folder, "made-up-gpu").study("throughput")
    return study.rows["p50_us"].iloc[0], study.record["torch"]


def later(run):
    """Makes the rows of a run a day younger than all others."""
    frame = pd.read_csv(run.path, dtype=str)
    frame.assign(timestamp_utc="2099-01-01T00:00:00Z").to_csv(run.path, index=False)


def test_the_newest_complete_run_is_read_and_names_its_software(tmp_path):
    measured(tmp_path)
    later(measured(tmp_path, p50=7.0, **NEW))
    assert read(tmp_path) == (7.0, "2.13.0")
    assert default_device(tmp_path) == "made-up-gpu"


@pytest.mark.parametrize(
    "less", [{"finish": False}, {"cases": CASES[:2]}, {"systems": ("stream",)}], ids=["cut", "few cases", "few systems"]
)
def test_a_newer_run_that_holds_less_is_not_read(less, tmp_path):
    measured(tmp_path)
    later(measured(tmp_path, p50=7.0, **NEW, **less))
    assert read(tmp_path) == (5.0, "2.11.0")


def test_where_no_run_was_finished_the_one_with_the_most_points_is_read(tmp_path):
    measured(tmp_path, CASES[:1], finish=False)
    measured(tmp_path, p50=7.0, finish=False, **NEW)
    assert read(tmp_path) == (7.0, "2.13.0")


def test_a_study_without_rows_has_no_other_place(tmp_path):
    home = tmp_path / "made-up-gpu" / "throughput.csv"
    assert newest(home) == home


def test_the_record_of_another_run_is_not_taken_for_the_rows(tmp_path):
    run = measured(tmp_path)
    notes = run.path.with_suffix(".json")
    notes.write_text(json.dumps(json.loads(notes.read_text(encoding="utf-8")) | {"run_id": "x"}), encoding="utf-8")
    assert Results(tmp_path, "made-up-gpu").study("throughput").record == {}
