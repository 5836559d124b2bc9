"""Many processes, one run: Hydra's submitit launcher on the CPU, locks of rows and record, and the lease of a card."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.sweeping import cards, overrides
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.locks import take
from tritonmoe_bench.experiments.table.run import Run
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import PlanError

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ROOT / "tests" / "fixtures" / "adapters"
ENVIRONMENT = {
    "device": "made-up-gpu", "device_uuid": "0", "driver": "1", "cuda": "13", "l2_bytes": 0, "memory_bytes": 0,
    "torch": "2", "triton": "3", "python": "3.12", "git_commit": "0", "git_dirty": False,
}  # fmt: skip
CASES = [Case("tiny", 8, 2, 128, 256, tokens) for tokens in range(1, 33)]


def row(implementation, **more):
    return {
        "implementation": implementation, "implementation_version": "1", "revision": 1, "method_revision": "m",
        "launch": "graph",
        "timing_method": "chain", "status": "ok", "reason": "", "p50_us": 5.0, **more,
    }  # fmt: skip


def open_run(folder, command="one", new=False, **changes):
    return Run.open(folder, "throughput", Layer(), ENVIRONMENT | changes, new=new, command=command)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU does")
def test_jobs_that_die_are_completed_and_no_row_is_lost_or_doubled(tmp_path):
    """Of two jobs one is preempted, which submitit answers by starting it again; the other is killed, and the same
    command completes it."""
    pytest.importorskip("submitit")
    command = [
        sys.executable, str(ROOT / "experiments" / "sweep.py"), "-m", "model=tiny", "tokens=[1,2,3],[4,5,6]",
        "implementations=[made_up_sound]", "modes=[eager]", f"results={tmp_path}", "hydra/launcher=submitit_local",
    ]  # fmt: skip
    settings = os.environ | {"TRITONMOE_ADAPTERS": str(ADAPTERS), "TMPDIR": str(tmp_path)}
    path = tmp_path / "interpreter" / "adhoc.csv"
    log = tmp_path / "log"
    with open(log, "w", encoding="utf-8") as output:
        first = subprocess.Popen(command, env=settings | {"TRITONMOE_TEST_SLEEP": "1"}, stdout=output, stderr=output)

    def begun():
        found = store.read(path)
        found = found[found["implementation"] == "made_up_sound"] if len(found) else found
        return len(found) and set(found["tokens"] > 3) == {False, True}

    wait_for(begun, log)
    preempted, killed = jobs_below(first.pid)
    before = store.read(path)
    os.kill(preempted, signal.SIGUSR2)
    os.kill(killed, signal.SIGKILL)
    assert first.wait(120) != 0
    assert "the same command again" in log.read_text(encoding="utf-8")

    done = subprocess.run(command, env=settings, capture_output=True, encoding="utf-8", errors="replace", timeout=240)
    assert done.returncode == 0, done.stderr
    raw = pd.read_csv(path)
    assert not raw.duplicated(["case_hash", "implementation", "launch"]).any()
    assert raw["run_id"].nunique() == 1
    for name in ("stream", "made_up_sound"):
        assert sorted(raw.loc[raw["implementation"] == name, "tokens"]) == [1, 2, 3, 4, 5, 6]
    assert (raw.loc[raw["implementation"] == "made_up_sound", "status"] == "ok").all()
    kept = raw.merge(before, on=["case_hash", "implementation", "launch"], suffixes=("", "_before"))
    assert len(kept) == len(before)
    assert (kept["timestamp_utc"] == kept["timestamp_utc_before"]).all()
    starts = [
        file.read_text(encoding="utf-8").count("Starting with") for file in tmp_path.glob("*/.submitit/*/*_log.out")
    ]
    assert sorted(starts) == [1, 1, 1, 2]


SPREAD = ("-m", "hydra/launcher=submitit_local", "model=tiny", "modes=[eager]")


def spread(folder, *arguments, system="made_up_sound"):
    asked = [*SPREAD, f"implementations=[{system}]", f"results={folder}", *arguments]
    command = [sys.executable, str(ROOT / "experiments" / "sweep.py"), *asked]
    settings = os.environ | {"TRITONMOE_ADAPTERS": str(ADAPTERS), "TMPDIR": str(folder)}
    return subprocess.run(command, env=settings, capture_output=True, encoding="utf-8", errors="replace", timeout=240)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU does")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["tokens=1,600"], "tiny at tokens=600"), (["study=throughput", "tokens=1,0"], "1 to 8192")],
)
def test_what_no_job_could_run_is_one_line_before_any_is_started(arguments, named, tmp_path):
    pytest.importorskip("submitit")
    done = spread(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what a machine without a GPU does")
def test_the_parent_of_jobs_says_what_they_do_and_how_they_ended(tmp_path):
    pytest.importorskip("submitit")
    done = spread(tmp_path, "tokens=1,2", "dry_run=true")
    assert done.stdout.count("study adhoc: 1 points") == 2, done.stderr
    assert not list(tmp_path.iterdir())

    done = spread(tmp_path, "tokens=1,2")
    path = tmp_path / "interpreter" / "adhoc.csv"
    logs = tmp_path / "tritonmoe-bench-multirun" / ".submitit"
    assert done.returncode == 0, done.stderr
    assert f"2 jobs: rows go to {path}; what the jobs print to {logs}/<job>/" in done.stdout
    assert done.stdout.count(f"2 rows in {path}: 1 ok, 1 unavailable") == 2
    assert done.stdout.splitlines()[-1] == f"2 jobs have ended, none has failed: rows are in {path}"
    assert logs.is_dir()

    done = spread(tmp_path, "tokens=1,2", "strict=true", system="made_up_raise")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: a job has failed: strict=true: 1 of 2 rows")


def wait_for(condition, log, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.05)


def jobs_below(pid):
    """Processes that submitit started as jobs of the command `pid`."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text(encoding="utf-8")
            command_line = (folder / "cmdline").read_bytes().decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = (int(status.split("PPid:")[1].split()[0]), command_line)

    def below(child):
        parent = parents.get(child, (0, ""))[0]
        return parent == pid or (parent > 1 and below(parent))

    return [child for child, (_, line) in parents.items() if "submitit.core._submit" in line and below(child)]


def test_jobs_of_one_command_share_a_run_and_lose_no_row_while_another_compacts(tmp_path):
    runs = [open_run(tmp_path, new=True) for _ in range(2)]
    assert runs[0].record["run_id"] == runs[1].record["run_id"]
    assert not list(tmp_path.glob("*/archive/*"))

    def write(index):
        for case in CASES:
            runs[index].append(case, row(f"system_{index}"))
            if case.tokens % 8 == 0:
                runs[index].finish()
        runs[index].save(processes=[*runs[index].record["processes"], {"implementation": index}])

    threads = [threading.Thread(target=write, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raw = pd.read_csv(runs[0].path)
    assert len(raw) == 2 * len(CASES)
    assert not raw.duplicated(["case_hash", "implementation", "launch"]).any()
    again = open_run(tmp_path, command="two")
    assert again.record["run_id"] == runs[0].record["run_id"]
    assert sorted(entry["implementation"] for entry in again.record["processes"]) == [0, 1]


def test_a_job_takes_the_limits_that_another_has_measured_meanwhile(tmp_path):
    first, second = open_run(tmp_path), open_run(tmp_path)
    first.append(CASES[0], row("stream", p50_us=3.0))
    first.save(matrix_tflops={"bf16": 700.0})
    [held] = second.done("stream", ["graph"])
    assert (held["case_hash"], held["revision"], held["method_revision"]) == (CASES[0].case_hash, "1", "m")
    second.append(CASES[0], row("fast"))
    read = second.read().set_index("implementation")
    assert read.loc["fast", ["stream_us", "limit_us"]].tolist() == [3.0, 3.0]
    assert store.read(first.path)["limit_us"].isna().all(), "it is joined when rows are read"
    second.finish()
    assert store.read(first.path)["limit_us"].tolist() == [3.0, 3.0], "and written when the sweep has ended"
    assert second.record["matrix_tflops"] == {"bf16": 700.0}


def test_kinds_of_gpu_get_folders_and_runs_of_their_own(tmp_path):
    runs = [open_run(tmp_path, device=device) for device in ("kind-a", "kind-b")]
    for run in runs:
        run.append(CASES[0], row("fast"))
    assert runs[0].record["run_id"] != runs[1].record["run_id"]
    for device in ("kind-a", "kind-b"):
        assert set(store.read(tmp_path / device / "throughput.csv")["device"]) == {device}


def test_a_run_that_others_write_to_is_not_taken_away(tmp_path):
    first = open_run(tmp_path)
    first.append(CASES[0], row("fast"))
    with pytest.raises(PlanError, match="another sweep is writing"):
        open_run(tmp_path, command="two", new=True)
    with pytest.raises(PlanError, match="differ in driver 1 and 2"):
        open_run(tmp_path, driver="2")
    old = first.record["run_id"]
    del first
    second = open_run(tmp_path, command="two", new=True)
    assert second.record["run_id"] != old
    assert len(list(tmp_path.glob("*/archive/*.csv.gz"))) == 1


def test_the_same_points_are_claimed_by_one_process_at_a_time(tmp_path):
    first, second, other = (open_run(tmp_path) for _ in range(3))
    first.claim(CASES, ["fast", "vllm"])
    other.claim(CASES, ["fast"])
    waiting = threading.Thread(target=second.claim, args=(list(reversed(CASES)), ["vllm", "fast"]))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    for handle in first._held:
        handle.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_each_job_leases_a_card_of_its_own_and_the_next_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv(cards.CARDS, "GPU-a,GPU-b")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pinned = []
    held = []
    for _ in range(2):
        held.append(cards.lease(tmp_path))
        pinned.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert pinned == ["GPU-a", "GPU-b"]
    waiting = threading.Thread(target=lambda: held.append(cards.lease(tmp_path)))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    held[1].close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    for handle in held:
        handle.close()


def test_a_killed_job_gives_its_card_back(tmp_path):
    program = (
        "import time\nfrom pathlib import Path\nfrom tritonmoe_bench.experiments.sweeping import cards\n"
        f"held = cards.lease(Path({str(tmp_path)!r}))\ntime.sleep(60)\n"
    )
    settings = checkout.program_environment(SUBMITIT_EXECUTOR="local", **{cards.CARDS: "GPU-a"})
    job = subprocess.Popen(
        [sys.executable, "-c", program], env=settings, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    assert job.stdout.readline() == "pinned to GPU-a\n"
    assert take(tmp_path / "GPU-a.lock", wait=False) is None
    job.kill()
    job.wait()
    assert take(tmp_path / "GPU-a.lock", wait=False) is not None


def test_a_launcher_that_is_not_installed_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(overrides.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"submitit_slurm: not installed: pip install '\.\[spread\]'"):
        overrides.read(["-m", "model=tiny", "hydra/launcher=submitit_slurm"])


def test_outside_of_a_job_no_card_is_leased(monkeypatch):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    assert cards.lease() is None


def test_slices_of_a_card_are_leased_by_their_own_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a,MIG-2b")
    assert cards.visible_cards() == ["MIG-1a", "MIG-2b"]
