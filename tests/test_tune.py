"""`make tune` without a GPU: the search under a stand-in for the clock, resuming, what is tried, what is refused."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tritonmoe_bench.experiments import (
    provenance,
    schema,
    tune,
    tune_compile,
    tune_layer,
    tune_plan,
    tune_search,
    tune_timer,
)
from tritonmoe_bench.experiments.case import Case
from tritonmoe_bench.experiments.plan import PlanError
from tritonmoe_bench.experiments.timing import Timing
from tritonmoe_bench.experiments.tune_search import Choice, finalists, search
from tritonmoe_bench.experiments.tune_space import Candidate, candidates, parts, whole
from tritonmoe_bench.kernels import fast_tiles, tuned
from tritonmoe_bench.kernels.fast_tile_types import FastTile, FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.target import Target

ROOT = Path(__file__).resolve().parents[1]
SKEWS = (0.0, 1.2)
TINY = Case("tiny", 8, 2, 128, 256, tokens=8, seed=1)
MODELS = {
    "mixtral": (8, 2, 4096, 14336), "qwen2_paper": (64, 4, 3584, 2560), "qwen3_30b_a3b": (128, 8, 2048, 768),
    "odd": (8, 2, 4097, 14337),
}  # fmt: skip
TARGETS = {"H200": Target(227 * 1024, 9), "A100": Target(163 * 1024, 8), "RTX 4090": Target(99 * 1024, 8)}


def tile(number):
    return FastTile(16 * 2**number, 64, 4, 2, 64, 2)


GATE_UP = [Candidate("gate_up", 64, tile(number)) for number in range(3)]
DOWN = [Candidate("down", 64, tile(number)) for number in range(3)]
FOUND = [*GATE_UP, *DOWN]
HEURISTIC = whole(GATE_UP[0], DOWN[0])
BETTER = whole(GATE_UP[1], DOWN[1])


class FakeTimer:
    """us of a stage by its candidate, of a forward the sum of both, each times what `change` says, None for what does
    not run; notes the calls."""

    def __init__(self, us, change=lambda what, skew, turn: 1.0):
        self.us, self.change = us, change
        self.stages, self.forwards = [], []

    def stage(self, candidate, skew):
        self.stages.append((candidate, skew))
        return self._changed(self.us[candidate], candidate, skew, 0)

    def forward(self, tiles, skew, turn):
        self.forwards.append((tiles, skew, turn))
        us = [self._changed(self.us[part], part, skew, turn) for part in parts(tiles)]
        return None if None in us else self._changed(sum(us), tiles, skew, turn)

    def _changed(self, us, what, skew, turn):
        factor = self.change(what, skew, turn)
        return None if factor is None else us * factor


def clock(**changed):
    """100 us for every candidate, but for those that are named, as gate_up1=80."""
    named = {
        f"{candidate.stage}{number}": candidate for group in (GATE_UP, DOWN) for number, candidate in enumerate(group)
    }
    return dict.fromkeys(FOUND, 100.0) | {named[name]: us for name, us in changed.items()}


def test_the_fastest_of_each_stage_is_chosen_with_its_gain():
    choice = search(FOUND, HEURISTIC, FakeTimer(clock(gate_up1=80, down1=70)), SKEWS)
    assert choice == Choice(BETTER, pytest.approx(200 / 150))


def test_the_geometric_mean_over_the_skews_decides():
    """gate_up1 is the fastest at one skew, gate_up2 over both."""
    timer = FakeTimer(
        clock(gate_up1=80, gate_up2=90), lambda what, skew, turn: 1.4 if (what, skew) == (GATE_UP[1], 1.2) else 1.0
    )
    assert search(FOUND, HEURISTIC, timer, SKEWS).tiles.gate_up == GATE_UP[2].tile
    assert search(FOUND, HEURISTIC, timer, SKEWS[:1]).tiles.gate_up == GATE_UP[1].tile


@pytest.mark.parametrize(("us", "wins"), [(99.7, False), (99.6, False), (99.0, True)])
def test_the_heuristic_stays_inside_of_the_margin(us, wins):
    choice = search(FOUND, HEURISTIC, FakeTimer(clock(gate_up1=us, down1=us)), SKEWS)
    assert (choice.tiles is not None) == wins
    assert choice.gain == pytest.approx(100 / us)


@pytest.mark.parametrize(("slow_rounds", "stays"), [(1, False), (3, True)])
def test_the_median_of_the_rounds_decides(slow_rounds, stays):
    def change(what, skew, turn):
        return 1.2 if what not in (HEURISTIC, *FOUND) and turn < slow_rounds else 1.0

    choice = search(FOUND, HEURISTIC, FakeTimer(clock(gate_up1=90, down1=90), change), SKEWS)
    assert (choice.tiles is None) == stays
    assert (choice.gain < tune_search.MARGIN) == stays


def test_a_drift_of_the_clock_favours_none():
    calls = itertools.count()
    choice = search(FOUND, HEURISTIC, FakeTimer(clock(), lambda *_: 1.01 ** next(calls)), SKEWS)
    assert choice.tiles is None


@pytest.mark.parametrize("skew", SKEWS)
def test_a_tile_that_is_wrong_at_one_skew_is_never_kept(skew):
    timer = FakeTimer(
        clock(gate_up1=50, down1=50), lambda what, at, turn: None if (what, at) == (GATE_UP[1], skew) else 1.0
    )
    choice = search(FOUND, HEURISTIC, timer, SKEWS)
    assert choice.tiles.down == DOWN[1].tile
    assert choice.tiles.gate_up != GATE_UP[1].tile
    assert all(tiles.gate_up != GATE_UP[1].tile for tiles, _, _ in timer.forwards)


@pytest.mark.parametrize("turn", range(tune_search.ROUNDS))
def test_a_forward_that_is_wrong_in_any_round_is_never_kept(turn):
    timer = FakeTimer(
        clock(gate_up1=50, down1=50), lambda what, skew, now: None if (what, now) == (BETTER, turn) else 1.0
    )
    choice = search(FOUND, HEURISTIC, timer, SKEWS)
    assert choice.tiles not in (None, BETTER)
    assert not [call for call in timer.forwards if call[0] == BETTER and call[2] > turn]


def test_a_heuristic_that_does_not_run_leaves_the_fastest_that_does():
    timer = FakeTimer(clock(gate_up1=80, down1=80), lambda what, *_: None if what == HEURISTIC else 1.0)
    assert search(FOUND, HEURISTIC, timer, SKEWS) == Choice(BETTER, None)


def test_nothing_is_chosen_where_nothing_runs():
    assert search(FOUND, HEURISTIC, FakeTimer(clock(), lambda *_: None), SKEWS) is None


def test_what_is_slow_at_one_skew_is_not_timed_at_the_next_but_the_heuristic_is():
    timer = FakeTimer(clock(gate_up0=300, gate_up2=200))
    search(FOUND, HEURISTIC, timer, SKEWS)
    assert (GATE_UP[2], 0.0) in timer.stages
    assert (GATE_UP[2], 1.2) not in timer.stages
    assert (GATE_UP[0], 1.2) in timer.stages


def test_heights_are_chosen_for_both_stages_together():
    """down is slow at the height that suits gate_up best."""
    times = {
        Candidate("gate_up", 64, tile(0)): [100.0], Candidate("down", 64, tile(0)): [100.0],
        Candidate("gate_up", 160, tile(1)): [60.0], Candidate("down", 160, tile(1)): [190.0],
        Candidate("gate_up", 192, tile(2)): [90.0], Candidate("down", 192, tile(2)): [90.0],
    }  # fmt: skip
    assert [tiles.block_m for tiles in finalists(times, BETTER)] == [192, 64, 160]
    assert [tiles.block_m for tiles in finalists(times, HEURISTIC)] == [192, 160], "it is no rival of itself"


def test_finals_hold_both_paths_and_few_of_a_height():
    times = {
        Candidate(stage, block_m, tile(number)): [10.0 + number]
        for stage, block_m, number in itertools.product(("gate_up", "down"), (64, 160, 192), range(3))
    }
    times |= {Candidate(stage, 0, FewTile(4, 512, 2)): [500.0] for stage in ("few_gate_up", "few_down")}
    found = finalists(times, HEURISTIC)
    assert len(found) == tune_search.FINALISTS
    assert sum(isinstance(tiles, FewTiles) for tiles in found) == 1
    heights = [tiles.block_m for tiles in found if isinstance(tiles, FastTiles)]
    assert max(map(heights.count, heights)) == tune_search.OF_A_HEIGHT


def tried(target, model, tokens):
    case = Case(model, *MODELS[model], tokens=tokens)
    with mock.patch.object(fast_tiles, "target_of", return_value=target):
        heuristic = fast_tiles.heuristic_tiles(torch.device("cuda", 0), *MODELS[model], tokens)
    return heuristic, candidates(case, heuristic, target.shared_memory_bytes, target.has_bulk_copies)


@pytest.mark.parametrize("tokens", [1, 2, 4, 32, 128, 512, 8192])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpu", TARGETS)
def test_what_is_tried_on_any_gpu(gpu, model, tokens):
    heuristic, found = tried(TARGETS[gpu], model, tokens)
    assert set(parts(heuristic)) <= set(found)
    assert len({(candidate.stage, str(candidate)) for candidate in found}) == len(found), "rows are told apart by these"
    heights = {stage: {c.block_m for c in found if c.stage == stage} for stage in ("gate_up", "down")}
    assert heights["gate_up"] == heights["down"], "a tile of one stage that no tile of the other goes with"
    assert heights["gate_up"]
    assert any(c.stage == "few_down" for c in found) == (tokens <= 4)
    bulk = [c for c in found if isinstance(c.tile, FastTile) and c.tile.bulk]
    sizes = {"gate_up": MODELS[model][2], "down": MODELS[model][3]}
    assert not [c for c in bulk if gpu != "H200" or sizes[c.stage] % 8]
    assert len(parts(heuristic)) < len(found) <= 120


def test_the_taller_blocks_are_tried_where_experts_have_many_rows():
    assert {c.block_m for c in tried(TARGETS["H200"], "mixtral", 512)[1]} == {128, 144, 160, 192}
    assert {c.block_m for c in tried(TARGETS["H200"], "mixtral", 8)[1]} == {16, 64}


def test_a_gpu_of_little_memory_gets_tiles_that_fit():
    """Weights and rows in flight, at the least height, by what the tile declares."""
    for model, tokens in itertools.product(MODELS, (8, 512)):
        for candidate in tried(TARGETS["RTX 4090"], model, tokens)[1]:
            matrices = 2 if candidate.stage == "gate_up" else 1
            tiles = candidate.tile
            needed = 2 * tiles.block_k * max(tiles.stages - 1, 1) * (matrices * tiles.block_n + 16)
            assert needed <= TARGETS["RTX 4090"].shared_memory_bytes, str(candidate)


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
    layers = tune_layer.make_layers(TINY, torch.device("cpu"), 2 * TINY.weight_bytes)
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
        right = tune_layer.stage_call

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
    monkeypatch.setattr(tune_layer, "make_layers", lambda *_: [])
    monkeypatch.setattr(tune, "plan_point", lambda case, device: tune_plan.Point(case, HEURISTIC, FOUND))
    monkeypatch.setattr(tune, "_compile", lambda points, device, jobs: [{} for _ in points])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def run(*arguments):
        made.points.clear()
        made.refused.clear()
        settings = [f"results={tmp_path / 'results'}", f"tables={tmp_path / 'tables'}", *arguments]
        tune.tune(tune_plan.read_config(["model=tiny", "tokens=[1,8,32]", *settings]))

    made.run = run
    made.csv = tmp_path / "results" / "made-up-gpu" / "tune.csv"
    made.table = lambda: tuned.load(tmp_path / "tables" / "made-up-gpu.json").get((8, 2, 128, 256), {})
    return made


def test_rows_and_table_are_written_and_nothing_is_done_twice(machine, capsys):
    machine.run()
    assert machine.table() == dict.fromkeys((1, 8, 32), BETTER)
    frame = schema.read(machine.csv, schema.TUNE_KEY)
    choices = frame[frame["stage"] == "choice"]
    assert choices["config"].tolist() == [str(BETTER)] * 3
    assert choices["gain"].tolist() == pytest.approx([200 / 150] * 3)
    assert len(frame[frame["stage"] == "gate_up"]) > 3
    assert set(frame["seed"]) == {1}, "studies measure seed 0: no tile is chosen on what it is judged by"
    record = json.loads(machine.csv.with_suffix(".json").read_text())
    assert record["finished_utc"]
    assert set(frame["run_id"]) == {record["run_id"]}
    assert f"tiny               32 {BETTER}" in capsys.readouterr().out
    machine.run()
    assert machine.points == []
    machine.run("tokens=[8,64]")
    assert machine.points == [64]
    machine.run("tokens=[8]", "force=true")
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
    machine.run("tokens=[8]")
    monkeypatch.setattr(tune, "code_hash", lambda: "another")
    machine.run("tokens=[8]")
    assert machine.points == [8]


def test_the_hash_tells_kernels_and_search_but_not_the_tables(monkeypatch, tmp_path):
    from tritonmoe_bench.experiments.pipelines.fast import Fast

    files = Fast().code()
    before = tune.code_hash()
    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setattr(Fast, "code", lambda self: [*files, tmp_path / "t.json"])
    assert tune.code_hash() == before
    (tmp_path / "k.py").write_text("")
    monkeypatch.setattr(Fast, "code", lambda self: [*files[1:], tmp_path / "k.py"])
    assert tune.code_hash() != before


def test_the_adapter_names_the_table_of_this_gpu_alone(monkeypatch, tmp_path):
    from tritonmoe_bench.experiments.pipelines.fast import Fast

    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="My GPU"))
    before = Fast().code()
    (tmp_path / "other-gpu.json").write_text("{}")
    assert Fast().code() == before
    (tmp_path / "my-gpu.json").write_text("{}")
    assert Fast().code() == [*before, tmp_path / "my-gpu.json"]


def test_layers_that_do_not_fit_are_left_out_and_said(capsys):
    small, large = (Case(name, *MODELS[name], tokens=1) for name in ("qwen3_30b_a3b", "mixtral"))
    assert tune_plan.fitting([small, large], 2 * 10**9) == [small]
    assert "left out: mixtral takes 2.8 GB" in capsys.readouterr().out
    with pytest.raises(PlanError, match="no layer fits on this GPU"):
        tune_plan.fitting([large], 10**9)


def test_kernels_are_compiled_once_a_layer_and_refusals_reach_every_point(monkeypatch):
    launch = {"module": "m", "kernel": "k"}
    compiled = []

    def record(points, fresh, target):
        for number, found in enumerate(fresh):
            for place, candidate in enumerate(found):
                yield {"point": number, "candidate": place, "launches": [launch | {"specialization": str(candidate)}]}

    def compile_all(launches, jobs):
        compiled.extend(launches)
        bad = str(GATE_UP[1])
        return [
            {"status": "spills" if entry["specialization"] == bad else "ok", "reason": "8 bytes"} for entry in launches
        ]

    monkeypatch.setattr(tune_compile, "_record", record)
    monkeypatch.setattr(tune_compile, "compile_all", compile_all)
    said = []
    points = [(TINY, GATE_UP[:2]), (replace(TINY, tokens=64), GATE_UP)]
    assert tune_compile.compile_points(points, "sm_90", 2, said.append) == [{GATE_UP[1]: "spills: 8 bytes"}] * 2
    assert len(compiled) == 3
    assert said == ["compiling 3 kernels by 2 processes"]


def test_launches_are_recorded_for_a_gpu_that_is_not_there():
    found = [Candidate("down", 16, SMALL), Candidate("few_gate_up", 0, FewTile(64, 128, 4))]
    lines = tune_compile._record([(TINY, found)], [found], "sm_90")
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
        tune_plan.plan_cases(tune_plan.read_config(arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU does")
def test_without_a_gpu_there_is_one_line_and_a_dry_run(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "tune.py"), f"results={tmp_path}", "tokens=[1,8]"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no NVIDIA GPU here")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*command, "dry_run=true"], capture_output=True, text=True, cwd=tmp_path)
    assert "points: 8, layers: 4" in done.stdout
    assert "mixtral E8 k2 tokens=8" in done.stdout
    assert not list(tmp_path.iterdir())
