"""Bytes by hardware counters: the reading of Nsight Compute's export, and the whole path under a stand-in for it."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.sweeping import worker
from tritonmoe_bench.experiments.table import columns
from tritonmoe_bench.experiments.traffic.counters import ncu
from tritonmoe_bench.experiments.traffic.counters.export import Kernel, by_case, read_export, short_name
from tritonmoe_bench.experiments.traffic.counters.rows import MOST_LAUNCHES, counted_rows, launches
from tritonmoe_bench.experiments.traffic.measure import Traffic
from tritonmoe_bench.experiments.workload.case import Case

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CASES = [Case("tiny", 8, 2, 128, 256, tokens=tokens) for tokens in (1, 2, 3)]
RUNS_NOTHING = """\
import json, sys
job = json.load(open(sys.argv[1]))
with open(job["progress"], "w") as progress:
    for index in range(len(job["cases"])):
        for event in ({"event": "start"}, {"event": "row", "row": {"status": "ok", "config": "none"}}):
            progress.write(json.dumps(event | {"index": index}) + "\\n")
"""
EXPORT = """\
the program's own line
==PROF== Connected to process 4711 (/usr/bin/python3.11)
==PROF== Profiling "_case_marker" - 0: 0%....50%....100% - 1 pass
==PROF== Profiling "moe_kernel" - 1: 0%....50%....100% - 1 pass
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__bytes_read.avg","dram__bytes_read.max","dram__bytes_read.min","dram__bytes_read.sum",\
"dram__bytes_write.avg","dram__bytes_write.max","dram__bytes_write.min","dram__bytes_write.sum",\
"lts__t_bytes.avg","lts__t_bytes.max","lts__t_bytes.min","lts__t_bytes.sum"
"","","","","","","","","","","","byte","byte","byte","byte","byte","byte","byte","byte","byte","byte","byte","{unit}"
"0","4711","python3.11","127.0.0.1","_case_marker","1","7","(32, 1, 1)","(3, 1, 1)","0","9.0",\
"0","0","0","0","0","0","0","0","1","1","1","64"
"1","4711","python3.11","127.0.0.1","void ns::moe_kernel<4, (bool)1>(int, T1)","1","7","(128, 1, 1)","(16, 132, 1)",\
"0","9.0","44,040,192.5","44,111,111","1","2,818,572,288","7","8","9","1,234","5","6","7","5,637,144,576"
==PROF== Disconnected from process 4711
"""


def kernel(name: str, read: int | None = 1) -> Kernel:
    return Kernel(name, (132, 1, 1), {"read_bytes": read, "write_bytes": 10, "l2_bytes": 100})


def test_the_sums_are_read_from_an_export():
    export = read_export(EXPORT.format(unit="byte"))
    marker, moe = export.kernels
    assert (marker.name, marker.grid) == ("_case_marker", (3, 1, 1))
    assert (moe.name, moe.grid) == ("moe_kernel", (16, 132, 1))
    assert moe.counts == {"read_bytes": 2_818_572_288, "write_bytes": 1_234, "l2_bytes": 5_637_144_576}
    assert (export.passes, export.complaints) == (1, [])
    assert by_case(export.kernels, "_case_marker") == {2: [moe]}


def test_a_larger_unit_is_turned_into_bytes_and_another_is_refused():
    assert read_export(EXPORT.format(unit="Mbyte")).kernels[0].counts["l2_bytes"] == 64_000_000
    with pytest.raises(ValueError, match="'sector'"):
        read_export(EXPORT.format(unit="sector"))


def test_an_export_without_a_counter_is_refused():
    with pytest.raises(ValueError, match=r"no column dram__bytes_write\.sum"):
        read_export(EXPORT.format(unit="byte").replace("dram__bytes_write.sum", "dram__bytes_write.pct"))


def test_messages_alone_are_no_kernels():
    export = read_export("==WARNING== No kernels were profiled.\n==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    assert export.kernels == []
    assert export.complaints == ["ERR_NVGPUCTRPERM - no permission", "No kernels were profiled."]


def test_kernels_belong_to_the_marker_before_them():
    def marker(index):
        return Kernel("m", (index + 1, 1, 1), {})

    a, b = kernel("a"), kernel("b")
    assert by_case([marker(0), a, b, marker(2), marker(1), b], "m") == {0: [a, b], 2: [], 1: [b]}
    with pytest.raises(ValueError, match="a before the first case"):
        by_case([a, marker(0)], "m")
    with pytest.raises(ValueError, match="case 0 twice"):
        by_case([marker(0), marker(0)], "m")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("_fused_gate_up_kernel", "_fused_gate_up_kernel"),
        ("void at::native::vectorized_elementwise_kernel<4, F<int>, A<2>>(int, F, A)", "vectorized_elementwise_kernel"),
        ("void (anonymous namespace)::softmax_warp<float, 8>(const T*)", "softmax_warp"),
        ("void <unnamed>::gather(int)", "gather"),
        ("nvjet_tst_64x8_64x16_1x4_h_bz_TNT", "nvjet_tst_64x8_64x16_1x4_h_bz_TNT"),
    ],
)
def test_short_names(name, short):
    assert short_name(name) == short


def test_torch_kernels_belong_to_the_stage_that_they_prepare():
    names = ("cublas", "_score_topk_kernel", "sort", "_permute_kernel", "_grouped_gemm_kernel", "_grouped_gemm_kernel",
             "_silu_mul_kernel", "copy", "_grouped_gemm_kernel", "_unpermute_combine_kernel", "last")  # fmt: skip
    rows = counted_rows("paper_unfused", [kernel(name, 1 << at) for at, name in enumerate(names)])
    reads = {row["stage"]: row["read_bytes"] for row in rows}
    assert reads == {
        "router": 0b11, "permute": 0b1100, "gate": 1 << 4, "up": 1 << 5, "silu_mul": 1 << 6, "down": 0b11 << 7,
        "unpermute_combine": 0b11 << 9, "total": (1 << 11) - 1,
    }  # fmt: skip
    assert rows[-1]["write_bytes"] == 110
    assert rows[-1]["l2_bytes"] == 1100


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["nvjet_gemm", "_top_k_kernel", "_place_kernel", "_gate_up_kernel", "_down_kernel", "_combine_kernel"],
         ["router", "router", "schedule", "gate_up", "down", "combine"]),
        (["_few_logits_kernel", "_top_k_kernel", "_few_gate_up_kernel", "_few_down_kernel"],
         ["router", "router", "gate_up", "down"]),
        (["_top_k_kernel", "_few_gate_up_kernel"], ["01 _top_k_kernel", "02 _few_gate_up_kernel"]),
    ],
)  # fmt: skip
def test_either_path_of_fast_has_its_stages(names, stages):
    rows = counted_rows("fast", [kernel(name, 1 << at) for at, name in enumerate(names)])
    assert [row["stage"] for row in rows] == [*dict.fromkeys(stages), "total"]
    for stage in dict.fromkeys(stages):
        read = sum(1 << at for at, name in enumerate(stages) if name == stage)
        assert next(row for row in rows if row["stage"] == stage)["read_bytes"] == read


def test_other_launches_than_the_pipelines_are_named_by_kernel():
    rows = counted_rows("paper_fused", [kernel("_score_topk_kernel"), kernel("_score_topk_kernel")])
    assert [row["stage"] for row in rows] == ["01 _score_topk_kernel", "02 _score_topk_kernel", "total"]


def test_the_launches_of_a_long_forward_share_a_row():
    many = [kernel("route"), *[kernel("gemm")] * MOST_LAUNCHES]
    assert set(launches(many)) == {"01 route (1 launches)", "02 gemm (40 launches)"}
    assert launches(many[:2]) == ["01 route", "02 gemm"]
    rows = counted_rows("torch_loop", many)
    assert [row["read_bytes"] for row in rows] == [1, MOST_LAUNCHES, MOST_LAUNCHES + 1]


def test_a_sum_is_never_made_of_a_part():
    with pytest.raises(ValueError, match=r"no value of dram__bytes_read\.sum"):
        counted_rows("fast", [kernel("a"), kernel("b", None)])


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """profile(implementation, mood) -> rows of `CASES` by their tokens, with the stand-in for ncu on the PATH."""
    if torch.cuda.is_available():
        pytest.skip("the stand-in profiles nothing")
    program = tmp_path / "ncu"
    program.write_text(
        f"#!{sys.executable}\n" + (FIXTURES / "fake_ncu.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRITONMOE_ADAPTERS", str(FIXTURES / "adapters"))
    job = {"environment": {"device": "interpreter", "l2_bytes": 0}, "timing": {}, "reference_folder": str(tmp_path)}

    def run(implementation, mood="", cases=CASES):
        monkeypatch.setenv("FAKE_NCU", mood)
        begun = []
        found = ncu.profile(implementation, cases, job, begun.append)
        assert begun == (cases if mood != "unable" else [])
        for rows in found.values():
            for row in rows:
                columns.validate(
                    [{"run_id": "r", "case_hash": "h", "implementation": "i", "timestamp_utc": "now", **row}],
                    Traffic.columns,
                )
        return {case.tokens: found[case.case_hash] for case in cases}

    return run


def test_every_case_has_its_stages_and_total(profile):
    found = profile("paper_fused")
    for tokens, rows in found.items():
        by_stage = {row["stage"]: row for row in rows}
        assert list(by_stage) == ["router", "permute", "gate_up", "down", "unpermute_combine", "total"]
        assert by_stage["gate_up"]["read_bytes"] == 300_000_000 * tokens
        assert by_stage["permute"]["read_bytes"] == 2_000_030 * tokens
        assert by_stage["total"]["l2_bytes"] == 1_310_205_060 * tokens
        assert all(row["status"] == "ok" and "gate_up_silu" in row["config"] for row in rows)


def test_a_crash_costs_its_own_case_and_the_next_are_profiled(profile):
    found = profile("made_up_crash")
    assert {tokens: rows[-1]["status"] for tokens, rows in found.items()} == {1: "ok", 2: "error", 3: "ok"}
    assert found[2][0]["reason"].startswith("the profiled process ended with code 7")
    assert found[3][-1]["read_bytes"] == found[1][-1]["read_bytes"]


def test_a_wrong_output_is_a_row_with_its_reason(profile):
    ((row,),) = profile("made_up_wrong", cases=CASES[:1]).values()
    assert row["status"] == "incorrect"
    assert "against the float32 reference" in row["reason"]
    assert (row["stage"], row["tensor"], row["method"]) == ("total", "all", "counters")


@pytest.mark.parametrize(
    ("mood", "status", "reason"),
    [
        ("denied", "unavailable", "ERR_NVGPUCTRPERM"),
        ("absent", "unavailable", "no value of lts__t_bytes.sum"),
        ("replayed", "error", "2 passes"),
        ("blind", "unavailable", "No kernels were profiled"),
        ("unable", "unavailable", "Another instance is already profiling"),
    ],
)
def test_what_cannot_be_counted_is_a_row_with_its_reason(profile, monkeypatch, tmp_path, mood, status, reason):
    child = tmp_path / "child.py"
    child.write_text(RUNS_NOTHING, encoding="utf-8")
    monkeypatch.setattr(ncu.checkout, "program", lambda module: [sys.executable, str(child)])
    ((row,),) = profile("made_up_sound", mood, CASES[:1]).values()
    assert row["status"] == status
    assert reason in row["reason"]


def test_without_nsight_compute_the_rows_say_so(monkeypatch):
    monkeypatch.setattr(ncu, "find_ncu", lambda: None)
    found = ncu.profile("paper_fused", CASES, {}, pytest.fail)
    assert [row["status"] for rows in found.values() for row in rows] == ["unavailable"] * len(CASES)
    assert "CUDA toolkit" in found[CASES[0].case_hash][0]["reason"]


def test_nsight_compute_is_found_beside_cuda(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ncu, "INSTALLED", ())
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert ncu.find_ncu() is None
    program = tmp_path / "toolkit" / "bin" / "ncu"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert ncu.find_ncu() is None  # not executable
    program.chmod(0o755)
    assert ncu.find_ncu() == str(program)


@pytest.mark.parametrize("device", ["interpreter", "made-up-gpu"])
def test_a_worker_gives_each_case_the_rows_of_every_method(monkeypatch, tmp_path, device):
    if torch.cuda.is_available():
        pytest.skip("makes believe that there is a GPU")
    events = []
    counted = {"method": "counters", "stage": "total", "tensor": "all", "status": "ok", "reason": "", "l2_bytes": 7}

    def profile(implementation, cases, job, on_start):
        assert (implementation, cases) == ("paper_fused", CASES)
        for case in cases:
            on_start(case)
        return {case.case_hash: [counted] for case in cases}

    monkeypatch.setattr(ncu, "profile", profile)
    monkeypatch.setattr(worker, "_clock", lambda job: 1980)
    job = {
        "kind": "traffic", "modes": ["model", "counters"], "timing": {}, "reference_folder": str(tmp_path),
        "environment": {"device": device, "device_uuid": "", "l2_bytes": 1 << 20},
    }  # fmt: skip
    identity = {"implementation": "paper_fused", "implementation_version": "1", "revision": 1, "method_revision": "m"}
    implementation = registry.get("paper_fused")
    worker._work(implementation, CASES, identity, job, lambda event, **content: events.append((event, content)))
    begun = [content["case_hash"] for event, content in events if event == "start"]
    assert begun[:3] == [case.case_hash for case in CASES]
    rows = {content["case_hash"]: content["rows"] for event, content in events if event == "rows"}
    assert {event for event, _ in events} == {"start", "rows"}  # nothing is timed
    for case in CASES:
        *modelled, last = rows[case.case_hash]
        assert {row["method"] for row in modelled} == {"model"}
        assert (last["method"], last["min_bytes"]) == ("counters", case.min_bytes(last["active_experts"]))
        assert last["status"] == ("unavailable" if device == "interpreter" else "ok")
