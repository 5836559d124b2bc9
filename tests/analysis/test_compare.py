"""What the order of rows may not change, what lies below the measured limit, and what is older than the code."""

import pandas as pd
import pytest
from claim_rows import frame, row

from tritonmoe_bench.experiments.analysis import age, compare
from tritonmoe_bench.experiments.claims.skew import _spread
from tritonmoe_bench.experiments.measure.revisions import locked
from tritonmoe_bench.experiments.reporting import tables
from tritonmoe_bench.experiments.table.limits import below_limit


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equal_medians_the_graph_is_the_best_launch_mode(reverse):
    rows = frame([row("fast", 100.0, launch="eager"), row("fast", 100.0, launch="graph")])
    rows = rows.iloc[::-1] if reverse else rows
    assert compare.timed(rows, "best")["launch"].tolist() == ["graph"]
    assert compare.timed(rows.assign(p50_us=[99.0, 100.0]), "best")["p50_us"].tolist() == [99.0]


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equal_systems_the_first_in_the_order_of_figures_is_the_fastest(reverse):
    rows = frame([row("vllm", 100.0), row("fast", 100.0), row("stream", 50.0), row("aaa", 100.0)])
    rows = rows.iloc[::-1] if reverse else rows
    assert compare.fastest_first(rows)["implementation"].tolist() == ["stream", "fast", "vllm", "aaa"]
    assert tables.winners(rows) == {"fast": 1}


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equal_others_the_first_by_name_is_the_best(reverse):
    rows = frame([row("fast", 50.0), row("vllm", 100.0), row("sglang", 100.0)])
    rows = rows.iloc[::-1] if reverse else rows
    assert compare.to_best(compare.compare(rows, "fast", ["vllm", "sglang"], "best"))["other"].tolist() == ["sglang"]


def test_eager_launches_are_compared_on_one_host_alone():
    here, there = {"device_uuid": "a", "git_commit": "1"}, {"device_uuid": "b", "git_commit": "2"}
    both = [
        there | {"device_uuid": "a"},
        there | {"git_commit": "1"},
    ]  # the same card, and another card of the same run
    for launch in ("eager", "graph"):
        rows = [row(name, 100.0, launch=launch) for name in ("fast", "vllm", "sglang", "megablocks_sparse")]
        pairs = compare.ratios(
            frame(rows).assign(**pd.DataFrame([here, there, *both])),
            "fast",
            ["vllm", "sglang", "megablocks_sparse"],
            launch,
        )
        assert sorted(pairs["other"]) == ["megablocks_sparse", "sglang", *(["vllm"] if launch == "graph" else [])]


def test_the_best_of_eager_launches_is_one_of_all_or_none():
    """With one system of another host, who is the best there is not known."""
    names = ["fast", "vllm", "sglang"]
    rows = frame([row(name, us, tokens=t) for t in (1, 8) for name, us in zip(names, (100.0, 120.0, 150.0))])
    rows["launch"] = "eager"
    rows["device_uuid"], rows["git_commit"] = "a", "1"
    away = (rows["implementation"] == "vllm") & (rows["tokens"] == 1)
    rows.loc[away, ["device_uuid", "git_commit"]] = "b", "2"

    def best_of(rows):
        return compare.best_eager(compare.ratios(rows, "fast", names[1:], "eager"), rows, names[1:])

    best = best_of(rows)
    assert best[["tokens", "other", "ratio"]].values.tolist() == [[8, "vllm", 1.2]]
    without = best_of(rows[~away])
    assert without.set_index("tokens")["other"].to_dict() == {1: "sglang", 8: "vllm"}


def test_of_two_runs_that_end_in_the_same_second_the_later_name_is_the_current_one():
    rows = frame([row("fast", 1.0, run_id="a"), row("fast", 2.0, run_id="b")])
    for some in (rows, rows.iloc[::-1]):
        assert compare.current_run(some)["run_id"].tolist() == ["b"]


def test_rows_stand_in_the_same_order_whatever_their_order_in_the_csv():
    rows = frame([
        row(name, 1.0, tokens=tokens, launch=launch)
        for name in ("vllm", "fast") for tokens in (8, 1, 64) for launch in ("eager", "graph")
    ])  # fmt: skip
    first = compare.ordered(rows)
    assert first["tokens"].tolist() == sorted(first["tokens"])
    assert first["launch"].tolist()[:2] == ["graph", "eager"]
    for seed in range(5):
        pd.testing.assert_frame_equal(compare.ordered(rows.sample(frac=1, random_state=seed)), first)


def test_the_spread_over_skews_is_that_of_the_latencies_in_any_order():
    rows = frame([row("fast", 100.0 + skew, skew=skew) for skew in (0.0, 50.0, 20.0)])
    assert _spread(rows, ["implementation"])["spread"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("name", "p50", "limit", "expected"),
    [
        ("fast", 100.0, 110.0, True),
        ("fast", 100.0, 100.5, False),  # inside of p20 to p80
        ("fast", 100.0, 90.0, False),
        ("fast", 100.0, float("nan"), False),
        ("stream", 100.0, 110.0, False),
    ],
)
def test_what_lies_below_the_measured_limit(name, p50, limit, expected):
    rows = frame([row(name, p50, limit_us=limit)])
    assert below_limit(rows).tolist() == [expected]
    assert below_limit(rows.drop(columns="limit_us")).tolist() == [False]


def test_older_rows_are_named_with_both_versions_and_their_studies(monkeypatch):
    lock = {"method": {"workload": 1, "latency": 2}, "revisions": {"fast": 4, "vllm": 1, "paper_fused": 2}}
    monkeypatch.setattr(age, "locked", lambda: lock)

    def rows(revision, method):
        return frame([
            row("fast", 1.0, revision=revision, method_revision=method),
            row("vllm", 1.0, revision=1, method_revision=method),
            row("paper_fused", 1.0, revision=revision, method_revision=method),
            row("of_somebody", 1.0, revision=0, method_revision=method),
        ])  # fmt: skip

    frames = {
        "throughput": rows(1, "workload1+latency1+default"),
        "headline": rows(3, "workload1+latency2+default"),
        "skew": rows(1, "workload1+latency1+default"),
        "traffic": rows(4, "workload1+traffic1"),
    }
    assert age.older_methods(frames) == [age.Older(("latency",), (1,), 2, ("throughput", "skew"))]
    assert age.older_revisions(frames) == [
        age.Older(("fast",), (1,), 4, ("throughput", "skew")),
        age.Older(("paper_fused",), (1,), 2, ("throughput", "skew")),
        age.Older(("fast",), (3,), 4, ("headline",)),
    ]


def test_rows_of_a_few_tokens_are_as_old_as_their_own_revision(monkeypatch):
    monkeypatch.setattr(age, "locked", lambda: {"revisions": {"fast": 8, "fast up to 4 tokens": 9}})
    rows = frame([row("fast", 1.0, tokens=tokens, revision=8) for tokens in (1, 4, 5, 512)])
    assert age.older_revisions({"headline": rows}) == [age.Older(("fast up to 4 tokens",), (8,), 9, ("headline",))]
    rows = frame([row("fast", 1.0, tokens=4, revision=9), row("fast", 1.0, tokens=5, revision=7)])
    assert age.older_revisions({"headline": rows}) == [age.Older(("fast",), (7,), 8, ("headline",))]


def test_the_lock_holds_what_rows_are_compared_with():
    assert {"fast", "stream", "paper_fused"} <= set(locked()["revisions"])
    assert {"workload", "latency", "energy", "traffic"} <= set(locked()["method"])
