"""What separates two measurements of the same thing, from made-up rows and records."""

import json

import make_results
import numpy as np
import pandas as pd
import pytest

from tritonmoe_bench.experiments.analysis import noise


def run(study, run_id, factor=1.0, points=10, **other):
    """Rows of one system at some points, `factor` as slow as 100 us, where the limit takes 50."""
    return pd.DataFrame({
        "study": study, "run_id": run_id, "case_hash": [f"case{n}" for n in range(points)], "implementation": "fast",
        "implementation_version": "1", "revision": 6, "method_revision": "latency2", "launch": "graph", "status": "ok",
        "p50_us": 100.0 * np.broadcast_to(factor, points), "stream_us": 50.0, **other,
    })  # fmt: skip


def test_a_system_in_two_runs_differs_by_what_nine_of_ten_points_do():
    factors = np.array([1.0] * 18 + [1.02] * 2 + [1.5])
    both = [run("headline", "a", points=21), run("skew", "b", factors, points=21)]
    assert noise.between_runs(both) == noise.Noise((pytest.approx(1.02),) * 4)
    assert max(noise.between_runs([run("headline", "a"), run("skew", "b", 1 / 1.03)]).factors) == pytest.approx(1.03)


def test_the_noise_goes_by_latency_where_a_band_has_points_enough():
    short = [run("headline", "a"), run("skew", "b", 1.1)]
    long = [
        frame.assign(case_hash=frame["case_hash"] + "long", p50_us=frame["p50_us"] * 20)
        for frame in (run("headline", "a"), run("skew", "b", 1.01))
    ]
    found = noise.between_runs([pd.concat(pair) for pair in zip(short, long)])
    both = found.factors[0]
    assert found.factors[1:] == pytest.approx((1.1, both, 1.01))
    rows = found.of(pd.DataFrame({"p50_us": [40.0, 100.0, 900.0, float("nan")]}))
    assert rows[noise.APART].tolist() == pytest.approx([both, 1.1, 1.01, 1.1])
    assert noise.percents(rows)[:3].tolist() == pytest.approx([100 * (both - 1), 10.0, 1.0])
    assert set(found.of(pd.DataFrame({"energy_mj": [1.0]}))[noise.APART]) == {1.1}


def test_a_point_has_one_vote_however_many_runs_share_it():
    """One point that is slow in one of six runs makes many pairs."""
    runs = [run(f"study{n}", str(n)) for n in range(2)]
    runs += [run(f"study{n}", str(n), 1.5 if n == 5 else 1.0, points=1) for n in range(2, 6)]
    assert noise.between_runs(runs).factors == pytest.approx((1.0,) * 4)
    runs += [run(f"study{n}", str(n), [1.0, 1.2, 1.2], points=3) for n in range(6, 8)]
    assert noise.between_runs(runs).factors == pytest.approx((1.2,) * 4)


def test_a_card_on_which_all_is_slower_is_no_noise():
    slower = run("skew", "b", 1.1, stream_us=55.0)
    assert noise.between_runs([run("headline", "a"), slower]).factors == pytest.approx((1.0,) * 4)


@pytest.mark.parametrize(
    "other", [{"revision": 5}, {"launch": "eager"}, {"run_id": "a"}, {"implementation": "stream"}, {"status": "oom"},
              {"stream_us": float("nan")}, {"points": 9}], ids=str
)  # fmt: skip
def test_rows_that_do_not_time_the_same_thing_twice_tell_nothing(other):
    second = {"study": "skew", "run_id": "b", "factor": 1.2, **other}
    assert noise.between_runs([run("headline", "a"), run(**second)]) == noise.Noise()


def test_no_run_has_no_noise(tmp_path):
    assert noise.between_runs([]) == noise.Noise()
    assert noise.measured(tmp_path) == noise.Noise()


def test_of_a_folder_the_larger_of_both_counts(tmp_path):
    make_results.make_results(tmp_path)
    device = tmp_path / make_results.DEVICE
    before = noise.measured(device)
    runs = noise.between_runs(noise._layer_runs(device))
    assert before == runs.at_least(noise.between_processes(device))
    most = max(before.factors)
    path = device / "throughput.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["processes"] = [{"stream_before_us": 100.0}, {"stream_before_us": 100.0 * (most + 1)}]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert noise.measured(device).factors == pytest.approx((most + 1,) * 4)
    record["processes"][1]["stream_after_us"] = 101.0  # the read before fell into a slow moment
    assert noise.spread(record) == pytest.approx(1.01)
    (device / "skew.csv").write_text("damaged\n1\n", encoding="utf-8")
    assert noise.measured(device).factors == pytest.approx((most + 1,) * 4)


def test_processes_are_compared_on_their_own_card(tmp_path):
    """Cards of which one is faster are no noise, as rows of both are compared by it."""
    rows = pd.DataFrame({"implementation": ["fast", "vllm"], "device_uuid": ["a", "b"], "timestamp_utc": ["1", "2"]})
    record = {
        "processes": [
            {"implementation": name, "stream_before_us": us} for name, us in (("fast", 233.0), ("vllm", 240.0))
        ]
    }
    assert noise.spread(record) == pytest.approx(240 / 233)
    assert noise.spread(record, rows) == 1.0
    record["processes"] += [{"implementation": "vllm", "device_uuid": "b", "stream_before_us": us} for us in (240, 252)]
    assert noise.spread(record, rows) == pytest.approx(1.05)


def test_rows_of_one_run_on_two_cards_are_no_noise():
    first = run("headline", "a", card_us=240.0)
    second = run("skew", "b", 233 / 240, card_us=233.0)
    assert noise.between_runs([first, second]).factors == pytest.approx((1.0,) * 4)
