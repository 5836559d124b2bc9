"""Kernels of a forward out of a trace: each has the time from the end of the one before it to its own."""

from types import SimpleNamespace

import pytest

from tritonmoe_bench.experiments.measure.trace import FLUSHED, Run, Trace, nearest, rows_of, runs_of, short_name


def forwards(replays, count):
    """Of two kernels, the second of which starts 1 us before the first ends; a replay begins 50 us after the last."""
    runs, now = [], 0.0
    for _ in range(replays):
        now += 50.0
        for _ in range(count):
            runs += [Run("route", now - 2, now + 3), Run("experts", now + 2, now + 10)]
            now += 10.0
    return runs


def test_times_between_ends_add_up_to_the_forward_and_first_forwards_do_not_count():
    first, second = rows_of(forwards(2, 4), 2, 4)
    assert (first["kernel_name"], first["p50_us"], first["start_us"], first["samples"]) == ("route", 3.0, -2.0, 6)
    assert (second["kernel_name"], second["p50_us"], second["start_us"], second["place"]) == ("experts", 7.0, -1.0, 2)


@pytest.mark.parametrize(
    ("off", "times", "kept"),
    [((1.0, 2.0), 1, 1.0), ((0.951, 2.0), 1, 0.951), ((0.87, 1.03, 1.0), 2, 1.03), ((0.87, 0.9, 1.2, 1.0), 3, 0.9)],
    ids=["at once", "near enough", "again", "never, so the nearest"],
)
def test_a_trace_is_measured_again_where_its_kernels_are_not_the_forward(off, times, kept):
    left = [[{"p50_us": 60 * share, "forward_us": 100.0}, {"p50_us": 40 * share, "forward_us": 100.0}] for share in off]
    made = []
    rows = nearest(lambda: made.append(left.pop(0)) or made[-1])
    assert (len(made), sum(row["p50_us"] for row in rows)) == (times, pytest.approx(100 * kept))


@pytest.mark.parametrize("runs", [[], forwards(2, 4)[:-1]])
def test_a_trace_that_lacks_kernels_is_refused(runs):
    with pytest.raises(ValueError, match="the profiler saw"):
        rows_of(runs, 2, 4)


def test_forwards_of_other_kernels_are_refused():
    runs = forwards(2, 4)
    runs[4] = Run("other", runs[4].start, runs[4].end)
    with pytest.raises(ValueError, match="their kernel 1 is other, route"):
        rows_of(runs, 2, 4)


def test_only_what_runs_on_the_gpu_counts_in_the_order_of_its_end():
    events = [
        {"cat": "kernel", "name": "_top_k_kernel", "ts": 5.0, "dur": 4.0},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0.0, "dur": 1.0},
        {"cat": "gpu_memset", "name": "Memset (Device)", "ts": 1.0, "dur": 2.0},
        {"name": "a mark without a category", "ts": 0.0},
    ]
    assert runs_of({"traceEvents": events}) == [Run("Memset", 1.0, 3.0), Run("_top_k_kernel", 5.0, 9.0)]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("_joined_kernel", "_joined_kernel"),
        ("void vllm::moe::topkGating<8, 128, 4>(float const*, bool const*)", "topkGating"),
        ("void (anonymous namespace)::moe_sum_kernel<c10::BFloat16, 8>(void*)", "moe_sum_kernel"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_names_lose_what_says_nothing(name, short):
    assert short_name(name) == short


@pytest.mark.parametrize(
    ("timed", "sets", "host_sync", "status", "reason"),
    [
        (False, 4, "", "unavailable", "needs an NVIDIA GPU"),
        (True, 4, "it waits for the counts", "unsupported", "it waits for the counts"),
        (True, 0, "", "unsupported", FLUSHED),
    ],
)
def test_what_cannot_be_traced_is_a_row_that_says_why(timed, sets, host_sync, status, reason):
    bench = SimpleNamespace(timed=timed, cold_sets=lambda case: sets)
    [row] = Trace().measure(SimpleNamespace(host_sync=host_sync), None, ["graph"], bench)
    assert (row["launch"], row["place"], row["kernel_name"]) == ("graph", "0", "all")
    assert (row["status"], row["reason"]) == (status, reason)
