"""`choose` as a command: what it is told, what it needs, and the commands that it suggests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from asking import DEVICE, ask

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments import choose as command
from tritonmoe_bench.experiments.sweeping.overrides import check, planned_job
from tritonmoe_bench.experiments.workload.arguments import PlanError


def suggested(said):
    """The commands between backticks, as a shell takes them apart, without `python experiments/sweep.py`."""
    commands = [shlex.split(text) for text in re.findall(r"`(python experiments/sweep\.py [^`]+)`", said)]
    assert commands
    return [words[2:] for words in commands]


@pytest.mark.parametrize(
    ("label", "sizes", "asked", "words"),
    [
        ("mixtral tp8", {"ffn_dim": 1792}, ["tokens=77"], "model=mixtral tp=8 tokens=77"),
        ("mixtral tp2 ep2", {"num_experts": 4, "ffn_dim": 7168}, ["skew=0.7", "tokens=77"],
         "model=mixtral tp=2 ep=2 tokens=77 skew=0.7"),
        ("mixtral ep2", {"num_experts": 4, "ffn_dim": 512}, ["tokens=77", "num_experts=4"],
         "model=mixtral model.ffn_dim=512 ep=2 tokens=77"),
        ("mixtral tp8", {"ffn_dim": 1792}, ["tokens=32", "quant=mxfp4"], "model=mixtral tp=8 tokens=32 quant=mxfp4"),
        ("mixtral", {}, ["tokens=77", "ffn_dim=14336"], "model=mixtral tokens=77"),
        ("mixtral", {}, ["tokens=32", "layer=native", "quant=int4_g32"],
         "model=mixtral tokens=32 quant=int4_g32 layer=native"),
        ("ours", {}, ["tokens=77"], "model=tiny model.name=ours model.hidden_dim=4096 "
         "model.ffn_dim=14336 tokens=77"),
    ],
)  # fmt: skip
def test_each_suggested_command_plans_what_is_asked(results, tmp_path, label, sizes, asked, words):
    shutil.copytree(results / DEVICE, tmp_path / DEVICE)
    rows = pd.read_csv(tmp_path / DEVICE / "throughput.csv", dtype="string")
    rows = rows[rows["model"] == "mixtral"].assign(model=label, **{name: str(size) for name, size in sizes.items()})
    rows.to_csv(tmp_path / DEVICE / "shards.csv", index=False)
    try:
        said = ask(tmp_path, f"model={label}", *asked)
    except PlanError as error:
        said = str(error)
    for line in suggested(said):
        assert line == words.split()
        (overrides,) = check([*line, "dry_run=true"], many=False)
        cases = planned_job(overrides).plan.cases
        assert {case.model for case in cases} == {label}
        for name, size in sizes.items():
            assert {getattr(case, name) for case in cases} == {size}


def test_help_tells_how_to_ask(capsys):
    assert command.main(["--help"]) == 0
    assert "choose.py model=mixtral tokens=32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            ["MODEL=mixtral", "TOKENS=32", "SKEW=1.2", "DTYPE=bf16"],
            "mixtral (8 experts, top-2, 4096 x 14336), 32 tokens",
        ),
        (["model=mixtral", "tokens=32"], "mixtral (8 experts, top-2, 4096 x 14336), 32 tokens"),
        (["MODEL=mixtral", "TOKENS=32", "TP=8"], "error: no shard of the shape mixtral tp8"),
        (["MODEL=mixtral", "TOKENS=32", "ep=2"], "error: no shard of the shape mixtral ep2"),
        (["MODEL=mixtral", "TOKENS=32", "TPS=8"], "error: TPS=8: did you mean tp?"),
    ],
)
def test_make_hands_on_all_that_it_is_told(results, variables, said):
    own = ["VENV=0", f"PY={sys.executable}", f"ARGS=results={results}"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "choose", *own, *variables],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=plain,
    )
    assert (done.stdout + done.stderr).startswith(said)


def test_it_runs_with_neither_torch_nor_triton(results, tmp_path):
    for name in ("torch", "triton"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this machine has none')\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "experiments" / "choose.py"), "model=mixtral", f"results={results}"]
    settings = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, "tokens=8"], capture_output=True, encoding="utf-8", errors="replace", env=settings)
    assert done.returncode == 0, done.stderr
    assert "Fastest of" in done.stdout
    done = subprocess.run([*command, "tokens=0"], capture_output=True, encoding="utf-8", errors="replace", env=settings)
    assert done.returncode == 1
    assert done.stderr == "error: tokens=... is needed, at least 1\n"
