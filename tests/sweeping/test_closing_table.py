"""The table that a sweep prints last, for every kind of study, from made-up rows."""

import re
from types import SimpleNamespace

import make_results
import pandas as pd
import pytest

from tritonmoe_bench.experiments.measure.measurement import measurements
from tritonmoe_bench.experiments.sweeping import summary
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.limits import BELOW_MARK
from tritonmoe_bench.experiments.table.store import Store
from tritonmoe_bench.experiments.workload.case import Case

KINDS = {"headline": "layer", "stages": "stages", "traffic": "traffic", "energy": "energy"}
SAYS = {
    "layer": "share of the measured limit",
    "stages": "expert_ffn",
    "traffic": "MB by one forward",
    "energy": "energy of one forward",
}
METHOD = "workload1+latency2+default"


@pytest.fixture(scope="module")
def fixture_results(tmp_path_factory):
    return make_results.make_results(tmp_path_factory.mktemp("results"))


def plan_of(kind, rows, method_revision=METHOD):
    return SimpleNamespace(
        measurement=measurements()[kind],
        cases=[SimpleNamespace(case_hash=name) for name in rows["case_hash"].unique()],
        implementations=list(rows["implementation"].unique()),
        method_revision=method_revision,
    )


@pytest.mark.parametrize("study", KINDS)
def test_every_kind_of_study_has_a_closing_table(study, fixture_results):
    path = fixture_results / f"{study}.csv"
    kind = KINDS[study]
    rows = store.read(path, measurements()[kind].key)
    table = summary.closing_table(path, plan_of(kind, rows))
    assert SAYS[kind] in table
    assert f"{len(rows)} rows in {path}" in table
    for model in rows["model"].unique():
        assert model in table
    failed = rows["status"].isin(summary.FAILURES)
    assert ("retry=true measures it again" in table) == failed.any()


def layer_csv(path, latencies, **columns):
    """A CSV of one run: latency in us by (implementation, model, tokens), with its limit where there is one."""
    rows = []
    for (implementation, model, tokens), (p50, limit) in latencies.items():
        case = Case(model, 8, 2, 128, 256, tokens)
        rows.append({
            "run_id": "r", "study": "adhoc", "model": model, "num_experts": 8, "top_k": 2, "hidden_dim": 128,
            "ffn_dim": 256, "tokens": tokens, "skew": 0.0, "seed": 0, "dtype": "bf16", "gating": "softmax",
            "case_hash": case.case_hash, "implementation": implementation, "method_revision": METHOD,
            "launch": "graph", "status": "ok", "p50_us": p50, "p20_us": p50, "p80_us": p50, "limit_us": limit,
            "flops": case.flops, "timestamp_utc": "2026-01-01T00:00:00Z", **columns,
        })  # fmt: skip
    Store(path, measurements()["layer"].columns).append(rows)
    return store.read(path)


def cells(table):
    """The cells by model and tokens, of the systems in the order of the header; a model stands on its first line."""
    found, model = {}, ""
    for text in table.splitlines():
        part = re.match(r"(\w+|) .* (\d+) +(\d+ \d+%.*)$", text)
        if part:
            model = part[1] or model
            found[model, int(part[2])] = re.split(r"  +", part[3])
    return found


def test_a_share_of_the_limit_is_that_of_its_own_point(tmp_path):
    limits = {("a", 8): 100.0, ("a", 64): 800.0, ("b", 8): 400.0, ("b", 64): 900.0}
    fast = {("a", 8): 200.0, ("a", 64): 1000.0, ("b", 8): 440.0, ("b", 64): 1800.0}
    latencies = {("fast", *point): (us, limits[point]) for point, us in fast.items()}
    latencies |= {("megablocks_sparse", *point): (2 * us, limits[point]) for point, us in fast.items()}
    path = tmp_path / "adhoc.csv"
    # Two models whose latencies interleave stand in another order in each of the frames that are joined.
    rows = layer_csv(path, latencies)
    plan = plan_of("layer", rows)
    table = summary.closing_table(path, plan)
    shares = {
        ("a", 8): "200 50% 2.00x", ("a", 64): "1000 80% 2.00x", ("b", 8): "440 91% 2.00x", ("b", 64): "1800 50% 2.00x",
    }  # fmt: skip
    assert {point: fast for point, (fast, _) in cells(table).items()} == shares
    assert BELOW_MARK not in table


def test_two_points_never_share_a_line(tmp_path):
    path = tmp_path / "adhoc.csv"
    layer_csv(path, {("fast", "a", 8): (5.0, 4.0)})
    rows = layer_csv(path, {("fast", "a", 8): (7.0, 4.0)}, gating="sigmoid", case_hash="another")
    table = summary.closing_table(path, plan_of("layer", rows))
    assert re.search(r"softmax .*5 80%", table)
    assert re.search(r"sigmoid .*7 57%", table)


def test_a_latency_below_the_limit_is_marked(tmp_path):
    path = tmp_path / "adhoc.csv"
    rows = layer_csv(path, {("fast", "a", 8): (500.0, 400.0), ("sly", "a", 8): (300.0, 400.0)})
    table = summary.closing_table(path, plan_of("layer", rows))
    assert cells(table)["a", 8] == [f"300 133%{BELOW_MARK}", "500 80%"]
    assert f"{BELOW_MARK}: faster than the measured limit" in table


def test_rows_of_another_timing_are_not_shown(tmp_path):
    path = tmp_path / "adhoc.csv"
    rows = layer_csv(path, {("fast", "a", 8): (500.0, 400.0)})
    assert "500 80%" in summary.closing_table(path, plan_of("layer", rows))
    assert summary.closing_table(path, plan_of("layer", rows, METHOD.replace("default", "thorough"))) == (
        f"no rows in {path}"
    )


def test_without_a_gpu_each_system_is_right_with_its_error_and_count(tmp_path):
    path = tmp_path / "adhoc.csv"
    rows = []
    for tokens, error in ((1, 0.002), (2, 0.003)):
        case = Case("tiny", 8, 2, 128, 256, tokens)
        rows.append({
            "run_id": "r", "case_hash": case.case_hash, "implementation": "mine", "method_revision": METHOD,
            "launch": "eager", "status": "ok", "rel_error": error, "torch_rel_error": 2 * error, "dtype": "bf16",
            "flops": case.flops, "timestamp_utc": "2026-01-01T00:00:00Z",
        })  # fmt: skip
    rows.append({**rows[0], "implementation": "theirs", "status": "error", "reason": "it broke", "rel_error": None,
                 "torch_rel_error": None})  # fmt: skip
    Store(path, measurements()["layer"].columns).append(rows)
    frame = store.read(path)
    lines = summary.closing_table(path, plan_of("layer", frame)).splitlines()
    assert "  mine: right at 2 points, error at most 0.003 (PyTorch's own 0.006)" in lines
    assert "  theirs: 1 x error: it broke" in lines
    assert lines[-1] == "what failed stays as it is: retry=true measures it again, force=true everything"


def test_limits_are_joined_whenever_stream_has_run(tmp_path):
    path = tmp_path / "adhoc.csv"
    layer_csv(path, {("fast", "a", 8): (500.0, None)})
    rows = layer_csv(path, {("stream", "a", 8): (400.0, None)})
    assert rows["limit_us"].isna().all()
    assert "500 80%" in summary.closing_table(path, plan_of("layer", rows))


def test_a_point_where_arithmetic_takes_longer_is_limited_by_it():
    from tritonmoe_bench.experiments.table.limits import with_limits

    point = {"run_id": "r", "case_hash": "c", "status": "ok", "dtype": "bf16", "flops": 7e12}
    rows = pd.DataFrame([
        {**point, "implementation": "fast", "launch": "graph", "p50_us": 20000.0},
        {**point, "implementation": "stream", "launch": "eager", "p50_us": 300.0},
        {**point, "implementation": "stream", "launch": "graph", "p50_us": 200.0},
        {**point, "implementation": "stream", "launch": "graph", "p50_us": 100.0, "run_id": "another"},
    ])  # fmt: skip
    joined = with_limits(rows, {"bf16": 700.0})
    assert list(joined["stream_us"]) == [200.0, 200.0, 200.0, 100.0]
    assert joined["limit_us"].iloc[0] == pytest.approx(10000.0)
    assert list(with_limits(rows, {})["limit_us"]) == [200.0, 200.0, 200.0, 100.0]


def test_a_limit_that_was_timed_again_is_the_limit_of_all_rows():
    from tritonmoe_bench.experiments.table.limits import with_limits

    point = {"run_id": "r", "case_hash": "c", "status": "ok", "dtype": "bf16", "flops": 1.0, "launch": "graph"}
    rows = pd.DataFrame([
        {**point, "implementation": "fast", "p50_us": 300.0, "stream_us": 250.0, "limit_us": 260.0},
        {**point, "implementation": "stream", "p50_us": 200.0, "stream_us": 200.0, "limit_us": 200.0},
        {**point, "implementation": "fast", "p50_us": 90.0, "stream_us": 80.0, "limit_us": 85.0, "case_hash": "alone"},
    ])  # fmt: skip
    joined = with_limits(rows, {"bf16": 700.0})
    assert list(joined["stream_us"]) == [200.0, 200.0, 80.0]
    assert list(joined["limit_us"]) == [200.0, 200.0, 85.0], "what is written stands where stream has no row"


def test_the_largest_error_of_each_system_stands_below_its_times(tmp_path):
    path = tmp_path / "adhoc.csv"
    latencies = {("fast", "tiny", 8): (10.0, 5.0), ("vllm", "tiny", 8): (12.0, 5.0)}
    errors = {"rel_error": 3e-3, "torch_rel_error": 2e-3, "activations": "a8"}
    rows = layer_csv(path, latencies, **errors)
    table = summary.closing_table(path, plan_of("layer", rows))
    assert "largest error over PyTorch's own with the same bits: fast 1.50 a8, vllm 1.50 a8" in table
