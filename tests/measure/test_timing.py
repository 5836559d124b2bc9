"""The timing function: what can be told without a GPU, and on one that it measures what it says."""

import functools

import pytest
import torch

from tritonmoe_bench.experiments.measure import timing
from tritonmoe_bench.experiments.measure.timing import (
    TimingSettings,
    lasting,
    matrix_tflops,
    quantile,
    time_calls,
    weight_sets,
)

SETTINGS = TimingSettings()
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def test_weight_sets_make_a_chain_four_times_the_l2():
    l2 = 50 << 20
    assert weight_sets(active_bytes=4 * l2, l2_bytes=l2, total_bytes=8 * l2, settings=SETTINGS) == 1
    assert weight_sets(active_bytes=l2, l2_bytes=l2, total_bytes=8 * l2, settings=SETTINGS) == 4
    assert weight_sets(active_bytes=l2 // 8, l2_bytes=l2, total_bytes=l2, settings=SETTINGS) == 32, "6 MB"
    assert weight_sets(active_bytes=l2 // 100, l2_bytes=l2, total_bytes=l2, settings=SETTINGS) == 0
    assert weight_sets(active_bytes=l2, l2_bytes=l2, total_bytes=30 << 30, settings=SETTINGS) == 0


def test_quantiles_interpolate():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([5.0], 0.8) == 5.0
    assert quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)


@pytest.mark.parametrize(("one", "start"), [(30, 0), (30, 9), (4000, 9), (2999, 0), (0.7, 12)])
def test_a_chain_is_as_long_as_it_is_asked_to_be(one, start):
    """start: what begins and ends a replay, however many forwards it has."""
    made = []

    def make(rounds):
        made.append(rounds)
        return rounds

    chain, rounds, took = lasting(make, lambda rounds: start + one * rounds, 3000.0, most=10_000)
    assert chain == rounds == made[-1]
    assert took == start + one * rounds
    assert 3000 <= took <= max(1.2 * 3000 + start, 2 * one + start)
    assert made[0] == 1
    assert len(made) <= 3, "few are made in vain"


@pytest.mark.parametrize("start", [0, 2])
def test_a_chain_of_forwards_that_launch_nothing_has_an_end(start):
    """One that gives back what it computed before would never last as long, however often it is in the chain."""
    made = []
    chain, rounds, took = lasting(lambda rounds: made.append(rounds) or rounds, lambda _: start, 3000.0, most=4096)
    assert (chain, rounds, took) == (4096, 4096, start)
    assert len(made) <= 3


@pytest.mark.parametrize("launch", ["graph", "eager"])
def test_a_forward_has_its_share_of_a_chain_that_is_timed_itself(launch, monkeypatch):
    """A graph of forwards is far shorter than the same forwards launched one by one."""
    ran = []
    monkeypatch.setattr(timing, "_captured", timing._repeated)

    def samples(run, count, flush):
        ran.clear()
        run()
        forwards = len(ran)
        return [10.0 + (25 if launch == "graph" else 200) * forwards] * count

    monkeypatch.setattr(timing, "_samples", samples)
    calls = [functools.partial(ran.append, name) for name in "abc"]
    timed = time_calls(calls, launch, TimingSettings(min_replay_us=3000.0, samples=40, budget_ms=60.0))
    assert set(ran) == set("abc")
    assert ran == list("abc") * (len(ran) // 3)
    forward = 25 if launch == "graph" else 200
    assert forward < timed.p50_us < 1.004 * forward, "10 us are shared by all forwards of 3 ms"
    assert 16 <= timed.samples <= 20, "as many as the budget has room for"


def test_after_a_flush_there_is_one_forward(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "_samples", lambda run, count, flush: [seen.append(flush) or 50.0] * count)
    timed = time_calls([lambda: None] * 2, "eager", SETTINGS, flush=True)
    assert (timed.p50_us, timed.method) == (50.0, "flush")
    assert seen[-1], "each sample has its own flush"


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("launch", ["graph", "eager"])
@pytest.mark.parametrize("flush", [False, True])
def test_a_copy_of_known_size_takes_a_time_that_memory_allows(launch, flush):
    source, target = (torch.empty(1 << 28, dtype=torch.int8, device="cuda") for _ in range(2))
    timed = time_calls([lambda: target.copy_(source)], launch, SETTINGS, flush=flush)
    assert timed.p20_us <= timed.p50_us <= timed.p80_us
    assert timed.samples >= SETTINGS.min_samples
    terabytes_per_s = 2 * source.numel() / timed.p50_us / 1e6
    assert 0.2 < terabytes_per_s < 20


@on_gpu
@pytest.mark.gpu
def test_a_wrong_output_stops_before_anything_is_timed():
    x = torch.ones(8, device="cuda")

    def refuse(output):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        time_calls([lambda: x + 1], "graph", SETTINGS, verify=refuse)


@on_gpu
@pytest.mark.gpu
def test_the_matrix_rate_is_that_of_a_gpu():
    assert 5 < matrix_tflops(torch.bfloat16, "cuda") < 10000
