"""How a sweep drives its workers: what a worker that is lost costs, and what is none of its events."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.sweeping import drive
from tritonmoe_bench.experiments.sweeping.drive import WorkerLost
from tritonmoe_bench.experiments.sweeping.scratch import scratch
from tritonmoe_bench.experiments.table.provenance import INTERPRETER
from tritonmoe_bench.experiments.table.run import SAME_RUN, Run
from tritonmoe_bench.experiments.workload.case import Case

CASES = {case.case_hash: case for case in (Case("tiny", 8, 2, 128, 256, tokens) for tokens in (1, 2, 3))}
FIRST, SECOND, THIRD = CASES
ENVIRONMENT = dict.fromkeys(SAME_RUN, "1") | {"device": "made-up-gpu"}
IDENTITY = {"implementation": "mine", "implementation_version": "1", "revision": 1, "method_revision": "m"}
KILLED = WorkerLost("error", "the process ended with code -9: it printed nothing")


def plan(*todo):
    return {"event": "plan", "todo": dict.fromkeys(todo or CASES, 1), **IDENTITY}


def begun(case_hash):
    return {"event": "start", "case_hash": case_hash}


def rows(case_hash, **changes):
    row = {**IDENTITY, "launch": "eager", "status": "ok", "reason": "", **changes}
    return {"event": "rows", "case_hash": case_hash, "rows": [row]}


def finished(case_hash):
    return [begun(case_hash), rows(case_hash)]


@pytest.fixture
def driven(monkeypatch, tmp_path):
    """driven(script of each worker, in their order) -> (status, reason) by case_hash, and how many workers it took."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def run(*scripts, force=False, modes=("eager",)):
        left = iter(scripts)
        run.jobs = []

        def events(worker, job, cases, timeout_s):
            run.jobs.append(job)
            for event in next(left):
                if isinstance(event, Exception):
                    raise event
                yield dict(event)

        monkeypatch.setattr(drive, "_events", events)
        monkeypatch.setattr(drive, "_Worker", lambda environment: SimpleNamespace(close=lambda kill: None))
        made = Run.open(tmp_path, "adhoc", Layer(), ENVIRONMENT)
        asked = SimpleNamespace(
            points=len(CASES), implementations=["mine"], cases_of=lambda name: list(CASES.values()), modes=list(modes),
            measurement=Layer(), method_revision="m",
        )  # fmt: skip
        drive.drive(asked, made, {}, 1.0, force=force)
        frame = made.read()
        found = dict(zip(frame["case_hash"], zip(frame["status"], frame["reason"].fillna(""))))
        return found, len(scripts) - len(list(left))

    return run


OK = ("ok", "")
LOST = ("error", str(KILLED))


def test_a_worker_that_is_killed_while_it_waits_costs_nothing(driven):
    found, workers = driven([KILLED], [plan(), *finished(FIRST), *finished(SECOND), *finished(THIRD)])
    assert found == dict.fromkeys(CASES, OK)
    assert workers == 2


def test_a_worker_that_is_killed_while_busy_costs_its_point(driven):
    found, _ = driven(
        [plan(), *finished(FIRST), begun(SECOND), KILLED], [plan(SECOND, THIRD), *finished(THIRD)],
    )  # fmt: skip
    assert found == {FIRST: OK, SECOND: LOST, THIRD: OK}


def test_a_worker_that_is_killed_between_two_points_costs_nothing(driven):
    found, _ = driven([plan(), *finished(FIRST), KILLED], [plan(), *finished(SECOND), *finished(THIRD)])
    assert found == dict.fromkeys(CASES, OK)


@pytest.mark.parametrize("script", [[KILLED], [plan(), KILLED]], ids=["before its plan", "before its first point"])
def test_a_system_that_never_starts_costs_all_its_points_after_a_second_try(script, driven):
    found, workers = driven(script, script)
    assert found == dict.fromkeys(CASES, LOST)
    assert workers == 2


def test_a_system_that_hangs_at_its_start_is_not_waited_for_twice(driven):
    hung = WorkerLost("timeout", "no result within 180 s")
    found, workers = driven([hung])
    assert found == dict.fromkeys(CASES, ("timeout", "no result within 180 s"))
    assert workers == 1


NOTHING_LEFT = plan() | {"todo": {}}
ALL_DONE = [plan(), *finished(FIRST), *finished(SECOND), *finished(THIRD)]


@pytest.mark.parametrize(
    ("scripts", "processes"),
    [
        ([[NOTHING_LEFT]], ["of"]),
        ([[plan(SECOND)], [plan(SECOND), *finished(SECOND)]], ["of", "mine"]),
        ([[KILLED], [NOTHING_LEFT]], ["of", "mine"]),
        ([[], [NOTHING_LEFT]], ["of", "mine"]),
        ([[NOTHING_LEFT, KILLED]], ["of"]),
        ([[NOTHING_LEFT | {"implementation": "other"}], [NOTHING_LEFT]], ["of", "mine"]),
    ],
    ids=["finished", "a row of an older revision", "lost", "nothing said of it", "lost after it", "of another system"],
)
def test_one_process_tells_which_systems_are_finished(scripts, processes, driven):
    driven(ALL_DONE)
    assert driven(*scripts) == (dict.fromkeys(CASES, OK), len(processes))
    assert ["of" if "of" in job else job["implementation"] for job in driven.jobs] == processes


def test_what_is_measured_by_force_is_not_looked_at_first(driven):
    driven(ALL_DONE)
    assert driven(ALL_DONE, force=True) == (dict.fromkeys(CASES, OK), 1)
    assert "of" not in driven.jobs[0]


def test_a_case_without_a_row_is_left(driven):
    driven([plan(FIRST, SECOND), *finished(FIRST), *finished(SECOND)])
    driven([plan(THIRD), *finished(THIRD)])
    assert "of" not in driven.jobs[0]


@pytest.mark.parametrize(
    ("force", "before"), [(False, []), (True, []), (True, [plan()])], ids=["", "force", "force, after its plan"]
)
@pytest.mark.parametrize("lost", [KILLED, WorkerLost("timeout", "no result within 180 s")], ids=["killed", "hangs"])
def test_a_system_that_does_not_start_any_more_leaves_its_rows(lost, force, before, driven, capsys):
    driven(ALL_DONE)
    tries = [[*before, lost]] * (2 if lost is KILLED else 1)
    looks = [] if force else [[lost]]  # the process that tells what is finished
    found, workers = driven(*looks, *tries, force=force)
    assert found == dict.fromkeys(CASES, OK)
    assert workers == len(looks) + len(tries)
    assert f"note: mine does not start ({lost}); rows of it that are there stay" in capsys.readouterr().out


def test_of_a_system_that_has_told_of_a_newer_revision_and_does_not_start_old_rows_go(driven):
    driven(ALL_DONE)
    script = [plan(SECOND), KILLED]
    assert driven([plan(SECOND)], script, script)[0] == {FIRST: OK, SECOND: LOST, THIRD: OK}


def test_a_system_that_does_not_start_gets_failures_in_the_modes_without_a_row_alone(driven, tmp_path):
    driven(ALL_DONE)
    driven([KILLED], [KILLED], modes=("eager", "graph"), force=True)
    rows = pd.read_csv(tmp_path / "made-up-gpu" / "adhoc.csv")
    assert rows.groupby("launch")["status"].apply(set).to_dict() == {"eager": {"ok"}, "graph": {"error"}}


NOT_HERE = {"status": "unavailable", "reason": "not installed", "implementation_version": ""}


@pytest.mark.parametrize("force", [False, True])
def test_a_system_that_is_not_here_any_more_leaves_its_rows(force, driven, capsys):
    error, missing = rows(SECOND, status="error", reason="a fault"), rows(THIRD, **NOT_HERE)
    driven([plan(), *finished(FIRST), begun(SECOND), error, begun(THIRD), missing])
    gone = [plan(), *(event for case in CASES for event in (begun(case), rows(case, **NOT_HERE)))]
    found, _ = driven(gone, force=True) if force else driven([plan()], gone)
    assert found == {FIRST: OK, SECOND: ("unavailable", "not installed"), THIRD: ("unavailable", "not installed")}
    assert (
        "note: mine cannot be measured here (not installed); rows of it that are there stay: 1"
        in capsys.readouterr().out
    )


def test_only_the_mode_that_is_unavailable_keeps_its_older_row(driven, tmp_path):
    def both(case_hash, eager, graph):
        changes = [{"launch": "eager", "status": eager}, {"launch": "graph", "status": graph}]
        told = [change | {"reason": "" if change["status"] == "ok" else "why"} for change in changes]
        return {"event": "rows", "case_hash": case_hash, "rows": [{**IDENTITY, **change} for change in told]}

    def sweep(*statuses):
        events = (event for case, pair in zip(CASES, statuses) for event in (begun(case), both(case, *pair)))
        driven([plan(), *events], modes=("eager", "graph"), force=True)

    sweep(("ok", "oom"), ("ok", "ok"), ("unavailable", "ok"))
    sweep(("unavailable", "unavailable"), ("oom", "unavailable"), ("ok", "unavailable"))
    rows = pd.read_csv(tmp_path / "made-up-gpu" / "adhoc.csv")
    found = rows.pivot_table(index="case_hash", columns="launch", values="status", aggfunc="first")
    assert {case: tuple(found.loc[case]) for case in CASES} == {
        FIRST: ("ok", "unavailable"), SECOND: ("oom", "ok"), THIRD: ("ok", "ok"),
    }  # fmt: skip


def test_a_process_looks_at_what_several_systems_have(tmp_path):
    """A real one, of systems of which one has all of its rows, one some, and one rows of an older revision."""
    environment = {"device": INTERPRETER}
    cases = [Case("tiny", 8, 2, 128, 256, tokens) for tokens in (1, 2)]

    def job(name, revision):
        entry = {"implementation": name, "implementation_version": registry.get(name).version(), "config": "",
                 "method_revision": "m", "revision": str(revision)}  # fmt: skip
        held = [entry | {"case_hash": case.case_hash} for case in cases]
        return {"implementation": name, "kind": "layer", "method_revision": "m", "environment": environment,
                "cases": [asdict(case) for case in cases]}, held  # fmt: skip

    jobs, done = {}, {}
    for name, older in (("stream", 0), ("fast", 0), ("paper_fused", 1), ("torch_loop", 0)):
        jobs[name], done[name] = job(name, registry.get(name).revision_of(cases[0]) - older)
    done["torch_loop"].pop()
    assert drive._finished(jobs, done) == ["stream", "fast"]
    assert drive._finished(jobs, {}) == []
    jobs["stream"]["cases"] = []
    assert drive._finished(jobs, {}) == ["stream"], "it has no case here"


@pytest.mark.parametrize("change", [{"p50_us": -1.0}, {"p50_us": float("nan")}, {"status": "fine"}])
def test_rows_that_no_csv_may_hold_cost_their_own_point(change, driven):
    wrong = [begun(FIRST), rows(FIRST, **change)]
    found, workers = driven([plan(), *wrong, *finished(SECOND), *finished(THIRD)])
    status, reason = found.pop(FIRST)
    assert status == "error"
    assert reason.startswith("its rows cannot stand in the CSV: ")
    assert found == {SECOND: OK, THIRD: OK}
    assert workers == 1


@pytest.mark.parametrize(
    "line",
    [
        b"hello", b"\xff\xfe", b"[1]", b"3", b"{}", b'{"event": "go"}', b'{"event": "plan"}',
        b'{"event": "rows", "case_hash": "x", "rows": []}', b'{"event": "rows", "case_hash": 3}', b'x {"event": "end"}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_the_systems_own_doing(line):
    with pytest.raises(WorkerLost, match="the system wrote into the pipe of its worker: ") as lost:
        drive._event(line, dict(CASES))
    assert lost.value.status == "error"


def test_an_event_is_taken_as_it_is():
    for event in (plan(), begun(FIRST), rows(SECOND), {"event": "end"}):
        assert drive._event(json.dumps(event).encode(), dict(CASES)) == event
    assert drive._event(b'{"event": "end"}', {}) == {"event": "end"}


HOLD = (
    "import time\nfrom tritonmoe_bench.experiments.sweeping.drive import ended_by_sigterm\n"
    "from tritonmoe_bench.experiments.sweeping.scratch import scratch\n"
    "with ended_by_sigterm(), scratch() as folder:\n"
    "    (folder / 'reference.pt').write_text('x')\n    print(folder, flush=True)\n    time.sleep(60)\n"
)


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=checkout.program_environment(TMPDIR=str(folder)), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, encoding="utf-8",
    )  # fmt: skip
    return process, Path(process.stdout.readline().strip())


def folders(root):
    return [path for path in root.iterdir() if path.is_dir()]


def test_sigterm_leaves_no_folder(tmp_path):
    process, folder = holder(tmp_path)
    assert folder.is_dir()
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert folders(folder.parent) == []


def test_what_a_kill_leaves_is_swept_by_the_next_sweep_and_nothing_else(tmp_path, monkeypatch):
    killed, left = holder(tmp_path)
    alive, kept = holder(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (left / "reference.pt").exists()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with scratch() as own:
        assert sorted(folders(own.parent)) == sorted([kept, own])
        assert (kept / "reference.pt").exists()
    assert folders(kept.parent) == [kept]
    alive.kill()
    alive.wait()


def test_a_handler_of_somebody_else_stays(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: print)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("it was replaced"))
    with drive.ended_by_sigterm():
        pass
