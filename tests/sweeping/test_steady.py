"""When a case is timed again: where the GPU's memory was slow beside it, or for a part of its samples, and over new
weights."""

import pytest
import torch

from tritonmoe_bench.experiments.measure.measurement import measurements
from tritonmoe_bench.experiments.sweeping import steady


class Moments:
    """A memory that is fast or not at each look after a case."""

    def __init__(self, *fast):
        self.fast, self.rests = list(fast), 0

    def is_fast(self):
        return self.fast.pop(0)

    def rest(self):
        self.rests += 1


def row(p20=100.0, p80=101.0, **changes):
    times = {"p20_us": p20, "p50_us": p20, "p80_us": p80}
    return {"status": "ok", "launch": "graph", "timing_method": "chain", **times, **changes}


def timed(*times, memory, full=True, new=False):
    left = iter(times)
    return steady.steadily(lambda: next(left), memory, lambda: full, new)


def test_a_case_in_fast_memory_is_timed_once():
    memory = Moments(True)
    assert timed([row()], memory=memory) == ([row()], 1)
    assert memory.rests == 1


def test_a_case_beside_a_slow_read_is_timed_again_and_the_last_time_stands():
    first, second = [row(110, 111)], [row(120, 121)]
    memory = Moments(False, True)
    assert timed(first, second, memory=memory) == (second, 2)
    assert memory.rests == 2


def test_samples_of_two_kinds_are_timed_again():
    assert timed([row(155, 177)], [row(155, 156)], memory=Moments(True, True)) == ([row(155, 156)], 2)


@pytest.mark.parametrize(
    "other",
    [
        row(155, 177, launch="eager"),
        row(155, 177, status="incorrect"),
        {"status": "oom", "launch": "graph"},
        row(1.5, 1.7, timing_method="trace"),
    ],
    ids=["eager", "incorrect", "nothing timed", "a kernel of a trace"],
)
def test_other_rows_may_spread(other):
    assert timed([row(), other], memory=Moments(True)) == ([row(), other], 1)


def test_at_the_power_limit_samples_may_spread():
    assert timed([row(1340, 1530)], memory=Moments(True), full=False) == ([row(1340, 1530)], 1)


def test_a_memory_that_stays_slow_is_not_waited_for_forever():
    times = [[row(p20, p20)] for p20 in (1, 2, 3)]
    assert timed(*times, memory=Moments(False, False, False)) == (times[2], steady.TRIES)


def test_over_new_weights_a_case_is_timed_until_two_times_agree():
    times = [[row(p20, p20 + 1)] for p20 in (25.7, 24.1, 24.0)]
    assert timed(*times, memory=Moments(True, True, True), new=True) == (times[2], 3)
    assert timed(*times[1:], memory=Moments(True, True), new=True) == (times[2], 2)
    assert timed(*times, memory=Moments(True)) == (times[0], 1)


def test_over_new_weights_times_that_never_agree_end():
    times = [[row(p20, p20 + 1)] for p20 in (100.0, 110.0, 100.0, 110.0)]
    assert timed(*times, memory=Moments(True, True, True), new=True) == (times[2], steady.TRIES)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (row(launch="eager"), row(launch="eager")),
        (row(1.0, timing_method="trace"), row(2.0, timing_method="trace")),
        ({"status": "unsupported", "launch": "graph"}, None),
    ],
    ids=["eager", "a kernel of a trace", "nothing timed"],
)
def test_what_has_no_latency_in_a_graph_is_timed_once(earlier, later):
    assert timed([earlier], [later], memory=Moments(True), new=True) == ([earlier], 1)


def test_a_case_that_failed_at_first_has_to_agree_with_itself():
    failed = [{"status": "oom", "launch": "eager"}, row()]
    assert timed(failed[:1], memory=Moments(True), new=True) == (failed[:1], 1)
    both, one = [row(), row(200.0, 201.0)], [row()]
    assert timed(one, both, both, memory=Moments(True, True, True), new=True) == (both, 3)


def test_all_that_is_timed_is_timed_steadily_but_where_the_memory_of_the_process_is_counted():
    assert [name for name, kind in measurements().items() if kind.counts_memory] == ["endtoend"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_memory_of_this_gpu_is_as_fast_as_it_was():
    memory = steady.GpuMemory()
    memory.rest()
    assert memory.is_fast()
    memory._least_us = memory.read_us() / 2
    assert not memory.is_fast()
