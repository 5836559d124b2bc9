"""What a worker waits for between two cases."""

from types import SimpleNamespace

import pytest

from tritonmoe_bench.experiments.sweeping import worker

FULL = 1980


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
