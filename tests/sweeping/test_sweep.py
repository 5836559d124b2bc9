"""The sweep as a user runs it: command lines, rows on disk, failures as rows, resume after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tritonmoe_bench.experiments.measure.measurement import kinds
from tritonmoe_bench.experiments.sweeping import command, summary
from tritonmoe_bench.experiments.table import columns, store
from tritonmoe_bench.experiments.workload import config
from tritonmoe_bench.experiments.workload.config import PlanError

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [sys.executable, str(ROOT / "experiments" / "sweep.py")]
ADAPTERS = ROOT / "tests" / "fixtures" / "adapters"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU does")
kinds()  # a table's columns are known once its kind has been imported


def sweep(*arguments, folder=None, check=True, **environment):
    line = [*SWEEP, *arguments, *([f"results={folder}"] if folder else [])]
    settings = os.environ | {"TRITONMOE_ADAPTERS": str(ADAPTERS)} | environment
    done = subprocess.run(
        line, capture_output=True, encoding="utf-8", errors="replace", env=settings, cwd=folder or ROOT, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def rows(folder, study="adhoc"):
    return store.read(Path(folder) / "interpreter" / f"{study}.csv")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=mixtrl"], "mixtral_8x22b"),
        (["study=througput"], "throughput"),
        (["tokens=0"], "1 to 8192"),
        (["tokens=100000"], "1 to 8192"),
        (["tokens=many"], "a whole number"),
        (["tokens=2.5"], "a whole number"),
        (["tokens=[]"], "at least one value"),
        (["model=mixtral", "model.top_k=9"], "1 to num_experts=8"),
        (["model=mixtral", "model.num_experts=5000"], "at most hidden_dim=4096"),
        (["model=mixtral", "model.num_expert=5"], "did you mean model.num_experts?"),
        (["model=mixtral", "+model.num_expert=5"], "did you mean model.num_experts?"),
        (["+timing.foo=9"], "timing.samples, timing.min_samples"),
        (["+timing.samples=9"], "write timing.samples=..."),
        (["~tokens"], "write tokens=..."),
        (["tokens.foo=3"], "tokens has no keys"),
        (["model.num_experts=64"], "give one model=... too"),
        (["study=throughput", "model.top_k=4"], "give one model=... too"),
        (["study=null"], "throughput"),
        (["study.name=../x"], "letters, digits"),
        (["model=tiny", "model.name=a/b"], "letters, digits"),
        (["study.name=smoke"], "no file of conf/study/ has"),
        (["study.grids=[{foo:3}]"], "implementations"),
        (["skew=-1"], "0 (uniform) to 8"),
        (["-m", "skew=0,-1"], "0 (uniform) to 8"),
        (["-m", "model=tiny,mixtrl"], "mixtral_8x22b"),
        (["dtype=fp7"], "bf16, fp16"),
        (["gating=hard"], "softmax_renorm"),
        (["tokns=3"], "did you mean tokens?"),
        (["modle=tiny"], "did you mean model?"),
        (["tokens=1,32"], "tokens=[1,32], or one after another by -m tokens=1,32"),
        (["model=tiny,mixtral"], "one after another by -m model=tiny,mixtral"),
        (["implementations=[paper_fuse]"], "paper_fused"),
        (["modes=[grph]"], "graph, eager"),
        (["timing.samples=few"], "timing.samples=few: a whole number is needed"),
        (["timing.samples=-3"], "timing.samples=-3: a number above 0 is needed"),
        (["timing.budget_ms=nan"], "timing.budget_ms=nan: a number above 0 is needed"),
        (["timeout_s=-5"], "timeout_s=-5: a number above 0 is needed"),
        (["timeout_s=abc"], "timeout_s=abc: a whole number is needed"),
        (["seed=abc"], "seed=abc: a whole number is needed"),
        (["force=maybe"], "force=maybe: true or false is needed"),
        (["results="], "a path is needed"),
        (["hydra/launcher=foo", "-m"], "submitit_local"),
        (["study=counters", "dry_run=false"], "no NVIDIA GPU here, which modes=counters needs"),
        (["model=tiny"], "takes tiny up to tokens=505, not tiny at tokens=512"),
        (["model=tiny", "tokens=4", "results=/proc/x"], "results=/proc/x: cannot use /proc/x"),
        (["model=tiny", "tokens=4", f"results={ROOT / 'Makefile'}"], "Not a directory"),
        (["model"], "key=value"),
    ],
)
def test_a_typo_or_an_impossible_value_ends_at_once_with_one_line(arguments, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    with pytest.raises(SystemExit, match=r"\Aerror: .+\Z") as end:
        command.main()
    assert named in end.value.code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("model/mine", "name: tiny\nnum_experts: 8\ntop_k: 2\nhidden_dim: 128\nffn_dim: 256", "must be mine"),
        ("model/mine", "name: mine\nnum_experts: 8", "missing mandatory value: top_k; its keys are name, num_experts"),
        ("model/mine", "name: mine\nhidden: 8", "Key 'hidden' not in 'ModelConfig'; its keys are name, num_experts"),
        ("model/mine", "name: mine\nnum_experts: 8\ntop_k: 2\nhidden_dim: 128\nffn_dim: 256\nnative_gating: hard",
         "native_gating=hard: allowed are softmax"),
        ("model/mine", "name: [", "not YAML"),
        ("model/mine", "- 3", "conf/model/mine.yaml"),
        ("study/mine", "name: smoke", "must be mine"),
        ("study/mine", "name: ../../esc", "must be mine"),
        ("study/mine", "kind: layer", "missing mandatory value: name; its keys are name, kind"),
        ("study/mine", "name: mine\ngrids: [{token: [1]}]", "its keys are models, tokens"),
        ("timing/mine", "sample: 3", "its keys are samples"),
    ],
)  # fmt: skip
def test_a_file_of_conf_that_cannot_be_is_one_line_that_names_it(file, text, named, tmp_path, monkeypatch):
    (tmp_path / file).parent.mkdir()
    (tmp_path / f"{file}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(config, "CONF", tmp_path)
    with pytest.raises(PlanError, match=rf"\Aconf/{file}\.yaml: .+\Z") as error:
        config.load(*file.split("/"))
    assert named in str(error.value)


@pytest.mark.parametrize("group", config.SECTIONS)
def test_every_file_of_conf_loads_by_its_name(group):
    assert all(config.load(group, name) for name in config.names(group))


@pytest.mark.parametrize("arguments", [["list=true"], ["model=tiny", "tokens=4"]])
def test_a_package_that_is_missed_within_hydra_is_one_line(arguments, monkeypatch, capsys):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'tritn'", name="tritn")

    monkeypatch.setattr(summary, "implementations_text", missing)
    monkeypatch.setattr(command, "_environment", missing)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    with pytest.raises(SystemExit, match=r"\Aerror: .+ has no package tritn, .+\Z"):
        command.main()
    assert capsys.readouterr() == ("", "")


def test_strict_ends_with_1_for_a_row_that_is_wrong(tmp_path):
    arguments = ["model=tiny", "tokens=1", "modes=[eager]", "implementations=[made_up_raise,made_up_missing]"]
    done = sweep(*arguments, folder=tmp_path)
    assert "retry=true measures it again" in done.stdout
    done = sweep(*arguments, "strict=true", folder=tmp_path, check=False)
    assert done.returncode == 1
    assert "error: strict=true: 1 of 3 rows" in done.stderr.splitlines()[-1]
    sweep(*arguments[:-1], "implementations=[made_up_sound,made_up_missing]", "strict=true", folder=tmp_path)


def test_the_line_is_all_that_a_user_sees():
    done = sweep("model=mixtrl", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: model=mixtrl: allowed are deepseek_v3")
    assert done.stderr.count("\n") == 1


def test_without_a_gpu_a_real_shape_is_refused_in_one_line():
    done = sweep("model=mixtral", check=False)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("error: no NVIDIA GPU here")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model=mixtral", "skew=1.2"], "skew: 1.2"),
        (["model=deepseek_v3", "tokens=[1,32,512]", "implementations=[paper_fused,megablocks_sparse]", "dtype=fp16"],
         "3 points x 3 implementations"),
        (["study=throughput"], "94 points x 27 implementations"),
        (["-m", "model=mixtral,qwen2_paper", "skew=0,0.6,1.2"], "models: qwen2_paper"),
        (["study=skew"], "27 points"),
        (["study=experts"], "15 points"),
        (["study=stages"], "stages"),
        (["model=mixtral", "model.num_experts=64", "model.top_k=4"], "experts: 64"),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_it_would_do_and_runs_nothing(arguments, expected, tmp_path):
    done = sweep(*arguments, "dry_run=true", folder=tmp_path)
    assert expected in done.stdout
    assert "minutes" in done.stdout
    assert "GB" in done.stdout
    assert not list(tmp_path.iterdir())


def test_list_names_every_implementation_and_why_not():
    done = sweep("--list")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert {"stream", "torch_loop", "paper_fused", "megablocks_sparse", "made_up_sound"} <= set(lines)
    assert "pip install made-up" in lines["made_up_missing"]
    assert "needs an NVIDIA GPU" in lines["stream"]


@pytest.mark.slow
def test_every_point_yields_a_row_whatever_happens(tmp_path):
    names = ["sound", "wrong", "nan", "crash", "raise", "oom", "missing", "picky"]
    chosen = ",".join(f"made_up_{name}" for name in names)
    done = sweep("model=tiny", "tokens=[1,2,3]", "dtype=[bf16,fp16]", f"implementations=[{chosen}]", folder=tmp_path)
    frame = rows(tmp_path)
    assert len(frame) == 6 * 2 * (len(names) + 1)
    assert not frame.duplicated(["case_hash", "implementation", "launch"]).any()
    assert frame[list(columns.TIMINGS)].isna().all().all()

    def status(name, **where):
        part = frame[(frame["implementation"] == f"made_up_{name}") & (frame["launch"] == "eager")]
        for column, value in where.items():
            part = part[part[column] == value]
        return set(part["status"])

    assert status("sound") == {"ok"}
    assert status("wrong") == status("nan") == {"incorrect"}
    assert status("crash", tokens=2) == {"error"}
    assert status("crash", tokens=1) == status("crash", tokens=3) == {"ok"}
    assert status("raise") == {"error"}
    assert status("oom") == {"oom"}
    assert status("missing") == {"unavailable"}
    assert status("picky", dtype="bf16") == {"ok"}
    assert status("picky", dtype="fp16") == {"unsupported"}
    reasons = frame[frame["status"] != "ok"]["reason"]
    assert reasons.notna().all()
    assert frame[(frame["implementation"] == "made_up_crash") & (frame["status"] == "error")]["reason"].str.contains(
        "code 7").all()  # fmt: skip
    errors = frame[(frame["implementation"] == "made_up_sound") & (frame["status"] == "ok")]["rel_error"]
    assert (errors > 0).all()
    assert (errors < 0.02).all()
    assert "the lid does not fit at all" in done.stdout
    record = json.loads((tmp_path / "interpreter" / "adhoc.json").read_text(encoding="utf-8"))
    assert set(frame["run_id"]) == {record["run_id"]}
    assert record["finished_utc"]


@pytest.mark.slow
def test_a_hung_point_times_out_and_the_rest_goes_on(tmp_path):
    sweep("model=tiny", "tokens=[1,2,3]", "implementations=[made_up_hang]", "timeout_s=4", folder=tmp_path)
    frame = rows(tmp_path)
    frame = frame[(frame["implementation"] == "made_up_hang") & (frame["launch"] == "eager")]
    assert dict(zip(frame["tokens"], frame["status"])) == {1: "ok", 2: "timeout", 3: "ok"}


@pytest.mark.slow
def test_a_kill_loses_no_finished_row_and_the_next_run_goes_on(tmp_path):
    arguments = ["model=tiny", "tokens=[1,2,3,4]", "implementations=[made_up_sound]", "modes=[eager]"]
    settings = os.environ | {"TRITONMOE_ADAPTERS": str(ADAPTERS), "TRITONMOE_TEST_SLEEP": "1.5"}
    process = subprocess.Popen([*SWEEP, *arguments, f"results={tmp_path}"], env=settings,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    path = tmp_path / "interpreter" / "adhoc.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and path.read_text(encoding="utf-8").count("made_up_sound") >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = rows(tmp_path)
    finished = before[before["implementation"] == "made_up_sound"]
    assert 2 <= len(finished) < 4
    time.sleep(2.5)  # a worker left behind would have finished another point by now
    assert len(rows(tmp_path)) == len(before)
    sweep(*arguments, folder=tmp_path)
    after = store.read(path)
    mine = after[after["implementation"] == "made_up_sound"]
    assert sorted(mine["tokens"]) == [1, 2, 3, 4]
    assert after["run_id"].nunique() == 1
    raw = pd.read_csv(path)
    assert not raw.duplicated(["case_hash", "implementation", "launch"]).any()
    kept = after.merge(finished, on=["case_hash", "implementation", "launch"], suffixes=("", "_before"))
    assert (kept["timestamp_utc"] == kept["timestamp_utc_before"]).all()

    size = path.stat().st_size
    sweep(*arguments, folder=tmp_path)
    assert path.stat().st_size == size
    stamps = set(after["timestamp_utc"])
    sweep(*arguments, "force=true", folder=tmp_path)
    again = pd.read_csv(path)
    assert len(again) == len(after)
    assert not stamps & set(again["timestamp_utc"])
    sweep(*arguments, "new_run=true", folder=tmp_path)
    [packed] = (tmp_path / "interpreter" / "archive").glob("adhoc-*.csv.gz")
    assert len(pd.read_csv(packed)) >= len(again)
    assert packed.with_name(packed.name.replace(".csv.gz", ".json")).exists()
    assert store.read(path)["run_id"].iloc[0] != after["run_id"].iloc[0]


@pytest.mark.slow
def test_our_pipelines_run_the_tiny_shape_and_are_right(tmp_path):
    ours = ["paper_fused", "paper_unfused", "paper_fused_graph", "torch_loop"]
    sweep("model=tiny", "tokens=[1,32]", "skew=1.2", f"implementations=[{','.join(ours)}]", folder=tmp_path)
    frame = rows(tmp_path)
    frame = frame[(frame["launch"] == "eager") & (frame["implementation"] != "stream")]
    assert set(frame["implementation"]) == set(ours)
    assert set(frame["status"]) == {"ok"}, frame["reason"].dropna().tolist()
    assert (frame["rel_error"] <= 2 * frame["torch_rel_error"]).all()
    assert (frame["min_bytes"] > 0).all()
