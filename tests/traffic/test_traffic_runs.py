"""A traffic study in parts: which system runs which points, and rows that replace those of their own forward alone."""

import pytest

from tritonmoe_bench.experiments.implementation.registry import get
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.run import Run
from tritonmoe_bench.experiments.traffic.measure import Traffic
from tritonmoe_bench.experiments.traffic.rows import traffic_rows
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import GridConfig, PlanError, StudyConfig, SweepConfig

OLD, NEW = 1, 2
KNOWN = ("fast", "fastvariant_x", "loop", "other", "stream")
CASES = [Case("tiny", 8, 2, 128, 256, tokens=tokens) for tokens in (1, 2)]
ENVIRONMENT = {
    "device": "gpu", "device_uuid": "u", "driver": "1", "cuda": "1", "torch": "1", "triton": "1", "python": "1",
    "l2_bytes": 1, "memory_bytes": 1, "git_commit": "c", "git_dirty": False,
}  # fmt: skip


def plan(kind="traffic", listed=("fast", "loop"), **changes):
    few = GridConfig(models=["tiny"], tokens=[1])
    many = GridConfig(models=["tiny"], tokens=[1, 2, 4], implementations=["fast"])
    study = StudyConfig(name="t", kind=kind, grids=[few, many], implementations=list(listed))
    return make_plan(SweepConfig(study=study, **changes), KNOWN)


def tokens(made):
    return {name: [case.tokens for case in made.cases_of(name)] for name in made.implementations}


def test_a_grid_of_some_implementations_leaves_the_others_out():
    made = plan()
    assert tokens(made) == {"fast": [1, 2, 4], "loop": [1]}
    assert (made.points, made.results) == (4, 8 + 4)  # three methods of counting


def test_a_plan_has_only_the_points_that_somebody_runs():
    made = plan(implementations=["loop"])
    assert [case.tokens for case in made.cases] == [1]
    assert tokens(made) == {"loop": [1]}


def test_what_the_study_does_not_list_runs_every_point():
    assert tokens(plan(implementations=["fastvariant_x", "loop"])) == {"fastvariant_x": [1, 2, 4], "loop": [1]}
    assert tokens(plan(listed=()))["other"] == [1]


def test_the_measured_limit_is_taken_at_every_point():
    assert tokens(plan("layer", implementations=["loop", "fast"])) == {
        "stream": [1, 2, 4],
        "loop": [1],
        "fast": [1, 2, 4],
    }


def test_the_forecast_knows_that_a_profiler_is_slow():
    more = 60 * (plan(modes=["counters"]).minutes() - plan(modes=["model"]).minutes())
    assert more == pytest.approx(12 * 2 + 1.2 * 4)  # two systems, four points


def test_an_unknown_name_in_a_grid_is_refused():
    grid = GridConfig(models=["tiny"], tokens=[1], implementations=["fsat"])
    with pytest.raises(PlanError, match=r"grids.implementations=fsat: allowed are fast"):
        make_plan(SweepConfig(study=StudyConfig(name="t", kind="traffic", grids=[grid])), KNOWN)


def forward(implementation, method, stages, revision):
    """Rows as a worker sends them: the stages of a forward, then its total."""
    return [
        {"implementation": implementation, "implementation_version": "1", "revision": revision, "method": method,
         "stage": stage, "tensor": "all", "status": "ok", "reason": "", "read_bytes": 1, "write_bytes": 1}
        for stage in (*stages, "total")
    ]  # fmt: skip


def kept(run):
    frame = store.read(run.path, Traffic.key)
    assert len(frame) == sum(1 for line in run.path.read_text(encoding="utf-8").splitlines()[1:] if line)
    forwards = frame.groupby(["implementation", "method", "tokens", "revision"])["stage"]
    return {forward: stages.astype(str).tolist() for forward, stages in forwards}


@pytest.fixture
def run(tmp_path):
    """A run with both cases of two systems, opened again as a later command does."""
    first = Run.open(tmp_path, "traffic", Traffic(), ENVIRONMENT)
    for case in CASES:
        for name in ("fast", "other"):
            first.put(case, [*forward(name, "model", ["gemm"], OLD), *forward(name, "counters", ["01 a", "02 b"], OLD)])
    again = Run.open(tmp_path, "traffic", Traffic(), ENVIRONMENT)
    assert again.record["run_id"] == first.record["run_id"]
    return again


def test_new_rows_of_a_system_replace_its_own_and_no_others(run):
    before = kept(run)
    run.put(CASES[0], forward("fast", "counters", ["01 c"], NEW))
    run.finish()
    gone = before.pop(("fast", "counters", 1, OLD))
    assert gone == ["01 a", "02 b", "total"]
    assert kept(run) == {**before, ("fast", "counters", 1, NEW): ["01 c", "total"]}


def test_a_failure_takes_the_place_of_what_was_there(run):
    lost = {"implementation": "fast", "implementation_version": "1", "revision": NEW}
    run.put(CASES[0], [lost | run.kind.failed(method, "timeout", "too long") for method in ("model", "counters")])
    after = kept(run)
    assert after["fast", "counters", 1, NEW] == after["fast", "model", 1, NEW] == ["total"]
    assert not any(name == "fast" and case == 1 and revision == OLD for name, _, case, revision in after)
    assert after["other", "counters", 1, OLD] == ["01 a", "02 b", "total"]


def test_rows_of_another_run_are_left_alone(run):
    text = run.path.read_text(encoding="utf-8").replace(run.record["run_id"], "an-earlier-run")
    run.path.write_text(run.path.read_text(encoding="utf-8") + text.split("\n", 1)[1], encoding="utf-8")
    run.put(CASES[0], forward("fast", "counters", [], NEW))
    assert run.path.read_text(encoding="utf-8").count("an-earlier-run") == len(CASES) * 2 * 5


def test_a_forward_without_its_total_is_not_done(run):
    modes = ["model", "counters"]
    assert len(run.done("fast", modes)) == len(CASES)
    cut = [
        line
        for line in run.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not _is_total(line, "fast", "counters")
    ]
    run.path.write_text("".join(cut), encoding="utf-8")
    assert run.done("fast", modes) == []
    assert len(run.done("fast", ["model"])) == len(run.done("other", modes)) == len(CASES)


@pytest.mark.parametrize(
    ("model", "counters", "done"),
    [
        ("tiles 1", "tiles 1", ["tiles 1"]),
        ("", "tiles 1", ["tiles 1"]),
        ("tiles 1", "", ["tiles 1"]),
        ("", "", [""]),
        ("tiles 1", "tiles 2", []),
    ],
)
def test_a_row_without_a_config_is_of_the_config_of_the_other_methods(run, model, counters, done):
    for config, method in ((model, "model"), (counters, "counters")):
        run.put(CASES[0], [{**row, "config": config} for row in forward("fast", method, [], NEW)])
    held = [entry for entry in run.done("fast", ["model", "counters"]) if entry["revision"] == str(NEW)]
    assert [entry["config"] for entry in held] == done


@pytest.mark.parametrize("name", ["fast", "paper_fused", "paper_unfused"])
@pytest.mark.parametrize("tokens", [1, 32])
def test_what_is_planned_without_a_gpu_is_what_the_rows_state(name, tokens, monkeypatch):
    """Not the tiles of the interpreter: a row of other ones would be counted again each time, or never."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    case = Case("tiny", 8, 2, 128, 256, tokens)
    assert {row["config"] for row in traffic_rows(case, name, "model")} == {Traffic().planned_config(get(name), case)}


def _is_total(line, implementation, method):
    return f",{implementation}," in line and f",total,all,{method}," in line
