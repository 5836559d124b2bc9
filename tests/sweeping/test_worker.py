"""What a worker waits for between two cases, and which of them it leaves out."""

from types import SimpleNamespace

import pytest

from tritonmoe_bench.experiments.implementation.contract import Implementation
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.sweeping import worker
from tritonmoe_bench.experiments.workload.case import Case

FULL = 1980


class Counted(Implementation):
    """A system with a path of its own up to four tokens."""

    name, family, source, revision, revisions_up_to = "counted", "made_up", "here", 8, {4: 9, 2: 10}
    version = check = build = None


@pytest.mark.parametrize(("tokens", "revision"), [(1, 10), (2, 10), (3, 9), (4, 9), (5, 8), (512, 8)])
def test_a_row_of_the_revision_of_its_tokens_is_not_measured_again(tokens, revision):
    Counted.__abstractmethods__ = frozenset()
    case = Case("tiny", 8, 2, 128, 256, tokens)
    assert Counted().revision_of(case) == revision
    for stated in (8, 9, 10):
        held = {"case_hash": case.case_hash, "revision": str(stated), "config": ""}
        assert worker._is_done(Layer(), Counted(), case, [held]) == (stated == revision)


@pytest.mark.parametrize(
    ("held", "done"),
    [([""], True), (["tiles 1"], False), (["tiles 2"], True), (["tiles 1", "tiles 2"], True), ([], False)],
)
def test_a_row_of_other_tiles_than_are_chosen_now_is_measured_again(held, done, monkeypatch):
    """A failed row states none, and what its system would choose is not asked then: it may not take the case."""
    Counted.__abstractmethods__ = frozenset()
    case = Case("tiny", 8, 2, 128, 256, 512)
    rows = [{"case_hash": case.case_hash, "revision": "8", "config": config} for config in held]

    def planned(self, case):
        assert any(held)
        return "tiles 2"

    monkeypatch.setattr(Counted, "planned_config", planned)
    assert worker._is_done(Layer(), Counted(), case, rows) is done


@pytest.mark.parametrize(
    ("clocks", "looks"),
    [([1980], 1), ([1950], 1), ([1395, 1700, 1965], 3), ([345], 1)],
    ids=["full", "within noise", "lowered by the case before", "idle"],
)
def test_a_case_begins_once_the_clock_is_back(clocks, looks, monkeypatch):
    left = iter([*clocks, "one look too many"])
    slept = []
    monkeypatch.setattr(worker, "_clock", lambda job: next(left))
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append))
    assert worker._rest({}, FULL) == FULL
    assert len(slept) == looks - 1


def test_a_clock_that_stays_low_is_not_waited_for_forever(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(worker, "_clock", lambda job: 1395)
    monkeypatch.setattr(
        worker, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    )
    assert worker._rest({}, FULL) == FULL
    assert worker.REST_S <= now[0] < worker.REST_S + 0.1


def test_a_higher_clock_is_what_the_next_case_waits_for(monkeypatch):
    monkeypatch.setattr(worker, "_clock", lambda job: 2010)
    assert worker._rest({}, FULL) == 2010
    assert worker._rest({}, None) == 2010


def test_without_a_clock_there_is_nothing_to_wait_for(monkeypatch):
    monkeypatch.setattr(worker, "_clock", lambda job: None)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=pytest.fail))
    assert worker._rest({}, FULL) == FULL
    assert worker._rest({}, None) is None


def test_the_first_case_over_new_weights_is_timed_twice(monkeypatch):
    Counted.__abstractmethods__ = frozenset()
    timed, sent = [], []

    def rows(measure, kind, implementation, case, modes, bench):
        timed.append((case.num_experts, case.tokens))
        latency = {"p20_us": 9.0, "p50_us": 9.0, "p80_us": 9.0}
        return [{"status": "ok", "launch": "graph", "timing_method": "chain", **latency}]

    kind = SimpleNamespace(
        timed=True, counts_memory=False, measure=None, ahead=lambda name, todo, modes, *_: ({}, modes)
    )
    memory = SimpleNamespace(is_fast=lambda: True, rest=lambda: None, read_us=lambda: 1.0)
    monkeypatch.setattr(worker, "measurements", lambda: {"layer": kind})
    monkeypatch.setattr(worker, "make_bench", lambda job: SimpleNamespace(timed=True))
    monkeypatch.setattr(worker, "GpuMemory", lambda: memory)
    monkeypatch.setattr(worker, "_clock", lambda job: FULL)
    monkeypatch.setattr(worker, "case_rows", rows)
    cases = [Case("tiny", experts, 2, 128, 256, tokens) for experts, tokens in ((8, 1), (8, 2), (4, 1), (8, 2))]
    job = {"kind": "layer", "modes": ["graph"], "environment": {"device_uuid": "made-up"}}
    worker._work(Counted(), cases, {}, job, lambda event, **content: sent.append((event, content)))
    assert timed == [(8, 1), (8, 1), (8, 2), (4, 1), (4, 1), (8, 2), (8, 2)]
    assert [len(content["rows"]) for event, content in sent if event == "rows"] == [1, 1, 1, 1]
    assert sent[-1][1]["drift"]["cases_timed_again"] == 0
