"""A run: which points it holds already, and when it is refused."""

import json

import pandas as pd
import pytest
from store_rows import ROW

from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.run import SAME_RUN, Run
from tritonmoe_bench.experiments.workload.case import Case

ENVIRONMENT = dict.fromkeys(SAME_RUN, "1") | {"device": "made-up-gpu"}
CASE = Case("tiny", 8, 2, 128, 256, 4)


def measured(launch):
    return {**{name: ROW[name] for name in ("implementation", "status", "p50_us")}, "implementation_version": "1",
            "revision": 1, "method_revision": "m", "launch": launch}  # fmt: skip


def test_a_run_does_a_point_of_a_damaged_line_again_and_drops_the_line(tmp_path, capsys):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    run.put(CASE, [measured("graph"), measured("eager")])
    assert run.done("x", ["graph", "eager"])
    lines = run.path.read_text(encoding="utf-8").splitlines()
    run.path.write_text("\n".join([lines[0], "garbage", lines[2]]) + "\n", encoding="utf-8")
    assert not run.done("x", ["graph", "eager"])
    assert run.done("x", ["eager"])
    assert f"{run.path} line 2" in capsys.readouterr().err
    run.put(CASE, [measured("graph")])
    run.finish()
    assert run.done("x", ["graph", "eager"])
    assert len(pd.read_csv(run.path)) == 2


def test_a_run_is_refused_before_it_measures_where_its_files_are_damaged(tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    run.put(CASE, [measured("graph")])
    whole, record = run.path.read_text(encoding="utf-8"), run.path.with_suffix(".json")
    run.path.write_text(whole.replace("p50_us", "p50_uss", 1), encoding="utf-8")
    del run
    with pytest.raises(store.Damaged, match="p50_uss"):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    assert Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT, new=True).record["run_id"]
    record.write_text("{", encoding="utf-8")
    with pytest.raises(store.Damaged, match=record.name):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    record.write_text(json.dumps({}), encoding="utf-8")
    assert Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT).record["run_id"]


@pytest.mark.parametrize("name", ["throughput.csv", "throughput.json"])
def test_a_link_that_leads_nowhere_is_told_before_anything_is_measured(name, tmp_path):
    link = tmp_path / "made-up-gpu" / name
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(store.Damaged, match=rf"{name}: a link to \S+gone, which is not there: remove the link"):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    assert link.is_symlink()


def test_another_timing_is_another_measurement(tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    run.put(CASE, [measured("graph") | {"method_revision": "latency2+default"}])
    assert [entry["method_revision"] for entry in run.done("x", ["graph"])] == ["latency2+default"]
    run.put(CASE, [measured("graph") | {"method_revision": "latency2+thorough"}])
    assert [entry["method_revision"] for entry in run.done("x", ["graph"])] == ["latency2+thorough"]


def test_failures_alone_are_done_again_by_retry(tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    statuses = ("ok", "unsupported", "unavailable", "oom", "incorrect", "timeout", "error")
    for tokens, status in enumerate(statuses, 1):
        row = measured("graph") if status == "ok" else {
            **measured("graph"), "status": status, "reason": "it is so", "p50_us": None,
        }  # fmt: skip
        run.put(Case("tiny", 8, 2, 128, 256, tokens), [row])
    assert len(run.done("x", ["graph"])) == len(statuses)
    kept = {entry["case_hash"] for entry in run.done("x", ["graph"], retry=True)}
    assert kept == {Case("tiny", 8, 2, 128, 256, tokens).case_hash for tokens in (1, 2)}
