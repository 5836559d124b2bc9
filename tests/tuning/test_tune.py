"""`make tune` without a GPU: compiling, checking, resuming, what is written, what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tune_cases import BETTER, FOUND, GATE_UP, HEURISTIC, MODELS, FakeTimer, clock

from tritonmoe_bench.experiments.measure import method
from tritonmoe_bench.experiments.measure.timing import Timing
from tritonmoe_bench.experiments.table import provenance, store
from tritonmoe_bench.experiments.tuning import compile, layer, measure, plan, tune
from tritonmoe_bench.experiments.tuning import timer as tune_timer
from tritonmoe_bench.experiments.tuning.space import Candidate
from tritonmoe_bench.experiments.workload.arguments import PlanError, read
from tritonmoe_bench.experiments.workload.case import QUANTS, Case
from tritonmoe_bench.experiments.workload.reference import quantize_fp8
from tritonmoe_bench.kernels.fast import tuned
from tritonmoe_bench.kernels.fast.e4m3 import launch_quantize_rows
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile

ROOT = Path(__file__).resolve().parents[2]
TINY = Case("tiny", 8, 2, 128, 256, tokens=8, seed=1)


@pytest.fixture
def timed(monkeypatch):
    """A GpuTimer of the tiny layer on the CPU whose clock stands still: calls run and are checked, 1 us each."""
    if torch.cuda.is_available():
        pytest.skip("in the interpreter")
    rows = []

    def time_calls(calls, launch, settings, *, flush, verify):
        outputs = [call() for call in calls]
        verify(outputs[0])
        return Timing(1.0, 1.0, 1.0, 1, "flush" if flush else "chain")

    monkeypatch.setattr(tune_timer, "time_calls", time_calls)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    layers = layer.make_layers(TINY, torch.device("cpu"), 2 * TINY.weight_bytes)
    assert len(layers) == 2
    timer = tune_timer.GpuTimer(TINY, layers, 0, {}, lambda case, row: rows.append((case.skew, row)))
    return timer, rows


SMALL = FastTile(64, 64, 4, 2, 64, 2)


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("gate_up", 64, SMALL),
        Candidate("down", 144, replace(SMALL, swap=True, bulk=True)),
        Candidate("few_gate_up", 0, FewTile(64, 128, 4)),
        Candidate("few_down", 0, FewTile(64, 256, 4)),
    ],
    ids=lambda candidate: candidate.stage,
)
def test_every_stage_is_checked_against_its_own_reference(candidate, timed, monkeypatch):
    timer, rows = timed
    with torch.inference_mode():
        assert timer.stage(candidate, 1.2) == 1.0
        skew, row = rows[-1]
        assert (skew, row["stage"], row["status"], row["routings"]) == (1.2, candidate.stage, "ok", 2)
        assert 0 < row["rel_error"] <= 2 * row["torch_rel_error"]
        right = layer.stage_call

        def off_by_a_row(candidate, batch):
            call = right(candidate, batch)
            return lambda: call().roll(1, 0)

        monkeypatch.setattr(tune_timer, "stage_call", off_by_a_row)
        assert timer.stage(candidate, 1.2) is None
    assert rows[-1][1]["status"] == "incorrect"
    assert "p50_us" not in rows[-1][1]


def test_a_whole_forward_is_checked_too(timed):
    timer, rows = timed
    with torch.inference_mode():
        assert timer.forward(FastTiles(64, SMALL, SMALL), 0.0, 2) == 1.0
    assert (rows[-1][1]["stage"], rows[-1][1]["round"]) == ("forward", 2)
    assert rows[-1][1]["rel_error"] <= 2 * rows[-1][1]["torch_rel_error"]


WHOLE = FastTile(128, 128, 4, 1, 128, 1, swap=True, small_swap=True)


@pytest.mark.parametrize("quant", [name for name in QUANTS if name != "none"])
def test_stages_and_forwards_of_every_format_are_checked_too(quant, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("in the interpreter")
    rows = []

    def time_calls(calls, launch, settings, *, flush, verify):
        verify(calls[0]())
        return Timing(1.0, 1.0, 1.0, 1, "chain")

    monkeypatch.setattr(tune_timer, "time_calls", time_calls)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    case = replace(TINY, num_experts=4, ffn_dim=128, tokens=3, quant=quant)
    layers = layer.make_layers(case, torch.device("cpu"), case.weight_bytes)
    timer = tune_timer.GpuTimer(case, layers, 0, {}, lambda case, row: rows.append(row))
    with torch.inference_mode():
        for stage in ("gate_up", "down"):
            assert timer.stage(Candidate(stage, 16, WHOLE), 0.0) == 1.0
        assert timer.forward(FastTiles(16, WHOLE, WHOLE), 0.0, 0) == 1.0
        few = FewTile(64, 128, 4) if quant == "fp8_block" else FewTile(32, 512, 4)
        for stage in ("few_gate_up", "few_down"):
            assert timer.stage(Candidate(stage, 0, few), 0.0) == 1.0
        right = layer.stage_call
        monkeypatch.setattr(tune_timer, "stage_call", lambda candidate, batch: lambda: _off(right(candidate, batch)()))
        assert timer.stage(Candidate("gate_up", 16, WHOLE), 0.0) is None
    assert rows[-1]["status"] == "incorrect"
    assert all(0 < row["rel_error"] <= 2 * row["torch_rel_error"] for row in rows[:-1])


def _off(output):
    """What gate and up give, a row too far."""
    values, scales = output
    return values.view(torch.uint8).roll(1, 0).view(values.dtype), scales


def test_a_tile_that_takes_rows_of_8_bits_is_compared_with_such_a_computation(device, monkeypatch):
    case = replace(TINY, num_experts=4, ffn_dim=128, tokens=3, quant="fp8_block")
    (only,) = layer.make_layers(case, torch.device(device), case.weight_bytes)
    batch = layer.draw_batches(case, [only], 0)[1][0]
    if device == "cpu":
        assert layer.activation_bits(batch, WHOLE) == "a16", "the CPU has no fp8 units"
    monkeypatch.setattr(layer, "quantized", lambda x, experts: launch_quantize_rows(x))
    batch._made.clear()
    assert layer.activation_bits(batch, WHOLE) == "a8"
    assert layer.activation_bits(batch, FewTile(64, 128, 4)) == "a16"
    numbers = torch.randn(5, 256, device=device)
    torch.testing.assert_close(layer.plain("gate_up", batch, launch_quantize_rows(numbers)), quantize_fp8(numbers))


def test_what_does_not_compile_is_not_run(timed):
    timer, rows = timed
    candidate = Candidate("gate_up", 64, SMALL)
    timer.refused = {("gate_up", str(candidate)): "spills: 8 bytes"}
    assert timer.stage(candidate, 0.0) is None
    assert (rows[-1][1]["status"], rows[-1][1]["reason"]) == ("unsupported", "spills: 8 bytes")


def test_a_kernel_that_breaks_the_gpu_ends_the_process_and_is_named(timed, monkeypatch):
    timer, rows = timed

    def broken(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(tune_timer, "time_calls", broken)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with torch.inference_mode(), pytest.raises(tune_timer.DeviceLost, match=r"gate_up m64 64x64.*illegal memory"):
        timer.stage(Candidate("gate_up", 64, SMALL), 0.0)
    assert rows[-1][1]["reason"].startswith(tune_timer.LOST)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose GPU is made up: every point takes a FakeTimer, results go to a folder of the test's own."""
    facts = provenance.environment() | {
        "device": "made-up-gpu", "device_uuid": "1-2", "driver": "1", "cuda": "1", "memory_bytes": 10**9,
    }  # fmt: skip
    made = SimpleNamespace(points=[], stop_at=None, lose_at=None, refused=[])

    class Timer(FakeTimer):
        def __init__(self, case, layers, l2_bytes, refused, emit):
            super().__init__(clock(gate_up1=80, down1=70))
            made.points.append(case.tokens)
            made.refused.append(refused)
            self.case, self.emit = case, emit

        def stage(self, candidate, skew):
            if made.stop_at == self.case.tokens:
                raise KeyboardInterrupt
            row = {"stage": candidate.stage, "config": str(candidate), "round": 0, "launch": "graph"}
            if made.lose_at == self.case.tokens and not made.refused[-1]:
                self.emit(
                    self.case, row | {"timing_method": "none", "status": "error", "reason": tune_timer.LOST + "x"}
                )
                raise tune_timer.DeviceLost("x")
            us = super().stage(candidate, skew)
            self.emit(replace(self.case, skew=skew), row | {
                "timing_method": "chain", "status": "ok", "reason": "", "p50_us": us, "samples": 1,
            })  # fmt: skip
            return us

    monkeypatch.setattr(provenance, "environment", lambda: facts)
    monkeypatch.setattr(provenance, "sm_clock_mhz", lambda uuid: 1980)
    monkeypatch.setattr(tune_timer, "GpuTimer", Timer)
    monkeypatch.setattr(layer, "make_layers", lambda *_: [])
    monkeypatch.setattr(tune, "plan_point", lambda case, device: plan.Point(case, HEURISTIC, FOUND))
    monkeypatch.setattr(tune, "_compile", lambda points, device, jobs: [{} for _ in points])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def run(*arguments, tokens="[1,8,32]"):
        made.points.clear()
        made.refused.clear()
        settings = [f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}", *arguments]
        tune.tune(read(plan.TuneConfig, ["model=tiny", f"tokens={tokens}", *settings]))

    made.run = run
    made.csv = tmp_path / "results" / "made-up-gpu" / "tune.csv"
    made.table = lambda: tuned.load(tmp_path / "tables" / "made-up-gpu.json").get(("none", 8, 2, 128, 256), {})
    return made


def test_rows_and_table_are_written_and_nothing_is_done_twice(machine, capsys):
    machine.run()
    assert machine.table() == dict.fromkeys((1, 8, 32), BETTER)
    frame = store.read(machine.csv, measure.Tune.key)
    choices = frame[frame["stage"] == "choice"]
    assert choices["config"].tolist() == [str(BETTER)] * 3
    assert choices["gain"].tolist() == pytest.approx([200 / 150] * 3)
    assert len(frame[frame["stage"] == "gate_up"]) > 3
    assert set(frame["seed"]) == {1}, "studies measure seed 0: no tile is chosen on what it is judged by"
    record = json.loads(machine.csv.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["finished_utc"]
    assert set(frame["run_id"]) == {record["run_id"]}
    assert f"tiny             none        32 {BETTER}" in capsys.readouterr().out
    machine.run()
    assert machine.points == []
    machine.run(tokens="[8,64]")
    assert machine.points == [64]
    machine.run("force=true", tokens="[8]")
    assert machine.points == [8]
    assert set(machine.table()) == {1, 8, 32, 64}


def test_a_cut_loses_nothing_finished_and_the_same_command_goes_on(machine):
    machine.stop_at = 8
    with pytest.raises(SystemExit, match="goes on from there"):
        machine.run()
    assert machine.table() == {1: BETTER}
    machine.stop_at = None
    machine.run()
    assert machine.points == [8, 32]
    assert set(machine.table()) == {1, 8, 32}


def test_a_kernel_that_broke_the_gpu_is_not_tried_again(machine):
    machine.lose_at = 8
    with pytest.raises(SystemExit, match="goes on from this point, without it"):
        machine.run()
    machine.run()
    assert machine.points == [8, 32]
    assert machine.refused[0] == {("gate_up", str(GATE_UP[0])): tune_timer.LOST + "x"}
    assert set(machine.table()) == {1, 8, 32}


def test_an_older_choice_is_made_again_when_the_search_changes(machine, monkeypatch):
    machine.run(tokens="[8]")
    monkeypatch.setitem(method.METHOD, "tune", method.METHOD["tune"] + 1)
    machine.run(tokens="[8]")
    assert machine.points == [8]


def test_layers_that_do_not_fit_are_left_out_and_said(capsys):
    small, large = (Case(name, *MODELS[name], tokens=1) for name in ("qwen3_30b_a3b", "mixtral"))
    assert plan.fitting([small, large], 2 * 10**9) == [small]
    assert "left out: mixtral takes 2.8 GB" in capsys.readouterr().out
    with pytest.raises(PlanError, match="no layer fits on this GPU"):
        plan.fitting([large], 10**9)


def test_kernels_are_compiled_once_a_layer_and_refusals_reach_every_point(monkeypatch):
    launch = {"module": "m", "kernel": "k"}
    compiled = []

    def record(points, fresh, target):
        for number, found in enumerate(fresh):
            for place, candidate in enumerate(found):
                yield {"point": number, "candidate": place, "launches": [launch | {"specialization": str(candidate)}]}

    def compile_all(launches, jobs, as_launched):
        assert as_launched == [("m", "k")]
        compiled.extend(launches)
        bad = str(GATE_UP[1])
        return [
            {"status": "spills" if entry["specialization"] == bad else "ok", "reason": "8 bytes"} for entry in launches
        ]

    monkeypatch.setattr(compile, "_record", record)
    monkeypatch.setattr(compile, "compile_all", compile_all)
    ordered = []
    monkeypatch.setattr(compile, "keys_in_order", ordered.append)
    said = []
    points = [(TINY, GATE_UP[:2]), (replace(TINY, tokens=64), GATE_UP)]
    assert compile.compile_points(points, "sm_90", 2, said.append) == [{GATE_UP[1]: "spills: 8 bytes"}] * 2
    assert len(compiled) == 3
    assert ordered == [[("m", "k")]]
    assert said == ["compiling 3 kernels by 2 processes"]


def test_launches_are_recorded_for_a_gpu_that_is_not_there():
    found = [Candidate("down", 16, SMALL), Candidate("few_gate_up", 0, FewTile(64, 128, 4))]
    lines = compile._record([(TINY, found)], [found], "sm_90")
    kernels = {line["candidate"]: [launch["kernel"] for launch in line["launches"]] for line in lines}
    assert kernels[0] == ["_down_kernel"]
    assert kernels[1] == ["_few_gate_up_kernel"]
    assert {"_top_k_kernel", "_place_kernel", "_combine_kernel"} <= set(kernels[None])
    assert {launch["target"] for line in lines for launch in line["launches"]} == {"sm_90"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modle=mixtral"], "did you mean model?"),
        (["mixtral"], "not of the form key=value"),
        (["tokens=1,8"], "several values stand in brackets"),
        (["model=mixtrl"], "allowed are"),
        (["model=[]"], "model is an empty list"),
        (["tokens=[]"], "tokens"),
        (["tokens=[0]"], "tokens=0"),
        (["jobs=many"], "jobs=many"),
        (["tp=3", "model=mixtral"], "tp"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_runs(arguments, message):
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        plan.plan_cases(read(plan.TuneConfig, arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU does")
def test_without_a_gpu_there_is_one_line_and_a_dry_run(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "tune.py"), f"results={tmp_path}", "tokens=[1,8]"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no NVIDIA GPU here")
    assert done.stderr.count("\n") == 1
    done = subprocess.run(
        [*command, "dry_run=true"], capture_output=True, encoding="utf-8", errors="replace", cwd=tmp_path
    )
    assert "points: 8, layers: 4" in done.stdout
    assert "mixtral E8 k2 tokens=8" in done.stdout
    assert not list(tmp_path.iterdir())
