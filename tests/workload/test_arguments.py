"""The one dialect of all commands: key=value, --help, one line for what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.sweeping import overrides
from tritonmoe_bench.experiments.workload.arguments import PlanError, command, key, read
from tritonmoe_bench.experiments.workload.config import systems

COMMANDS = ("experiments/sweep.py", "experiments/tune.py", "experiments/choose.py", "experiments/report.py",
            "experiments/portability.py", "plots/draw.py")  # fmt: skip


@dataclass
class Keys:
    name: str = key("", "a name")
    tokens: list[int] = key([1, 2], "batch sizes")
    skew: float = key(0.5, "an exponent")
    out: Path = key(Path("/tmp/out"), "a folder")
    brief: bool = key(False, "do less")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["name=4.5"], "name", "4.5"),
        (["name=007"], "name", "007"),
        (["name=1e3"], "name", "1e3"),
        (["name=null"], "name", "null"),
        (["NAME=mixtral"], "name", "mixtral"),
        (["name=mixtral tp8"], "name", "mixtral tp8"),
        (["tokens=4"], "tokens", [4]),
        (["tokens=[4,8]"], "tokens", [4, 8]),
        (["skew=1"], "skew", 1.0),
        (["BRIEF=true"], "brief", True),
        (["out=/a b/c"], "out", Path("/a b/c")),
        (["out='/a b/c'"], "out", Path("/a b/c")),
        (["out=~/c"], "out", Path.home() / "c"),
        (["out=c"], "out", Path.cwd() / "c"),
        (["out=/it's/a,b"], "out", Path("/it's/a,b")),
        (["out=/a\\b\\"], "out", Path("/a\\b\\")),
        ([], "tokens", [1, 2]),
    ],
)
def test_a_value_is_taken_as_it_is_typed(arguments, name, value):
    assert getattr(read(Keys, arguments), name) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokns=1"], "tokns=1: did you mean tokens? allowed are name, tokens, skew, out, brief"),
        (["tokens=few"], "tokens=few: a whole number is needed, or a list of such in brackets"),
        (["tokens=1.5"], "tokens=1.5: a whole number is needed, or a list of such in brackets"),
        (["skew=much"], "skew=much: a number is needed"),
        (["brief=perhaps"], "brief=perhaps: true or false is needed"),
        (["tokens=1,2"], "tokens=1,2: several values stand in brackets, tokens=[..,..]"),
        (["skew=1", "SKEW=2"], "SKEW=2: skew=... is given twice"),
        (["out="], "out=: a path is needed"),
        (["out=~nobody-of-that-name/x"], "out=~nobody-of-that-name/x: Could not determine home directory."),
        (["name"], "name: not of the form key=value; allowed are name, tokens, skew, out, brief"),
        (["--name", "x"], "--name: write name=x"),
        (["--name=x"], "--name=x: write name=x"),
        (["--tokens", "1", "2", "skew=1"], "--tokens: write tokens=[1,2]"),
        (["--brief"], "--brief: write brief=true"),
        (["--vast"], "--vast: allowed are name, tokens, skew, out, brief, and --help"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_what_can(arguments, message, capsys):
    with pytest.raises(PlanError) as error:
        read(Keys, arguments)
    assert str(error.value) == message
    assert command(Keys, "", lambda keys: 0, arguments) == 1
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_help_shows_every_key_with_its_default_and_meaning(capsys):
    assert command(Keys, "Does a thing.\n", lambda keys: 1, ["-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Does a thing."
    shown = [re.sub(" +", " ", line).strip() for line in lines[3:]]
    assert shown == [
        "name= a name", "tokens=[1,2] batch sizes", "skew=0.5 an exponent", "out=/tmp/out a folder",
        "brief=false do less",
    ]  # fmt: skip


def run(file: str, *arguments: str, **settings: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / file), *arguments], capture_output=True, encoding="utf-8", **settings
    )


@pytest.mark.parametrize("file", COMMANDS)
def test_every_command_has_the_same_help(file):
    done = run(file, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"    python {file}" in done.stdout
    head, keys = done.stdout.split("\nKeys, with their defaults; a list stands in brackets:\n")
    assert len(keys.splitlines()) > 3
    for each in re.findall(rf"python {file} ([^#\n]*)", head):
        for text in each.split():
            name = text.partition("=")[0].partition(".")[0]
            assert text.startswith("-") or f"\n  {name}=" in "\n" + keys


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("experiments/report.py", ["--device", "nvidia-h200"], "device=nvidia-h200"),
        ("plots/draw.py", ["--only", "headline", "traffic"], "only=[headline,traffic]"),
        ("experiments/portability.py", ["--targets", "gfx942", "--brief"], "targets=gfx942"),
        ("experiments/sweep.py", ["--model", "mixtral"], "model=mixtral"),
    ],
)
def test_the_old_spelling_is_one_line_with_the_new_one(file, old, new):
    done = run(file, *old)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {old[0]}: write {new}\n"


def test_the_help_of_a_sweep_shows_the_commands_of_the_readme_its_keys_and_their_values():
    text = run("experiments/sweep.py", "--help").stdout
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if line.startswith("python experiments/sweep.py ")]
    assert len(commands) >= 6
    for line in commands:
        assert f"    {line}\n" in text
    for value in ("mixtral_8x22b", "throughput", "bf16, fp16", "softmax_renorm", "thorough", "megablocks, serving"):
        assert value in text


def combinations(*arguments: str) -> list[list[str]]:
    return overrides.read(arguments).combinations


def test_hydras_own_words_work():
    assert combinations("-m", "model=glob(qwen2*)", "tokens=1") == [
        ["model=qwen2_57b_a14b", "tokens=1"], ["model=qwen2_paper", "tokens=1"],
    ]  # fmt: skip
    assert [line[1] for line in combinations("-m", "model=tiny", "tokens=range(1,4)")] == [
        "tokens=1", "tokens=2", "tokens=3",
    ]  # fmt: skip
    assert len(combinations("-m", "model=choice(tiny,mixtral)", "tokens=1")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "model=tiny", "tokens=interval(1,4)"], "a sweep needs single values, such as tokens=1,2,4"),
        (["-m", "model=glob(x*)"], "model=glob(x*): matches none of deepseek_v3"),
        (["-m", "tokens=glob(*)"], "tokens=glob(*): matches none of the files of conf/"),
        (["model=glob(qwen*)"], "as one list, model=[qwen2_57b_a14b,qwen2_paper,"),
        (["--lst"], "--lst: "),
        (["--cfg", "nothing"], "invalid choice: 'nothing'"),
        (["model=[tiny,mixtrl]", "tokens=1"], "model=mixtrl: allowed are"),
        (["model=[tiny,mixtral]", "model.top_k=1"], "give one model=... too"),
        (["implementations=[feild]", "model=tiny"], "sets torch, paper, paper_code, megablocks, serving, field"),
    ],
)
def test_words_that_cannot_be_are_one_line(arguments, message):
    with pytest.raises(PlanError) as error:
        overrides.read(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_hydra_is_taken_as_it_is_typed():
    line = overrides.read(["-m", "model=tiny", "tokens=1,2", "hydra.sweep.dir=~/my jobs"])
    assert f"hydra.sweep.dir='{Path.home()}/my jobs'" in line.arguments
    assert len(line.combinations) == 2


def test_a_configuration_can_be_shown():
    done = run("experiments/sweep.py", "--cfg", "job", "model=tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert "num_experts: 8" in done.stdout


def test_a_list_of_models_is_one_sweep(tmp_path):
    folder = tmp_path / "my results"
    done = run("experiments/sweep.py", "model=[tiny,mixtral]", "TOKENS=[1,2]", "dry_run=true", f"results={folder}")
    assert done.returncode == 0, done.stderr
    assert "4 points x " in done.stdout
    assert "  models: tiny, mixtral\n" in done.stdout


def test_a_set_stands_for_its_systems():
    [job] = [overrides.planned_job(["model=tiny", "implementations=[megablocks,fast]"])]
    assert job.plan.implementations == [
        "stream", "megablocks_sparse", "megablocks_grouped_cublas", "megablocks_grouped_cutlass", "fast",
    ]  # fmt: skip
    [job] = [overrides.planned_job(["study=throughput"])]
    assert job.plan.implementations == [*systems()["field"], "vllm_tuned"]
    assert {"stream", "paper_fused", "vllm", "tutel"} <= set(systems()["field"])
