"""The Makefile: what it hands to the commands, and what each target runs with a GPU and without one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import fields

import pytest

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.choose import Question


def make(*arguments: str, **variables: str) -> str:
    """What make prints. These tests may themselves run below a make that was given variables."""
    given = {"ARGS", "JOBS", "PY", "VENV"}
    own = {name for name in os.environ if name in given or name.startswith(("MAKE", "MFLAGS"))}
    plain = {name: value for name, value in os.environ.items() if name not in own}
    command = ["make", *arguments, *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=plain)
    assert done.returncode == 0, done.stderr
    return done.stdout


def planned(*arguments: str, **variables: str) -> list[str]:
    """The commands that make would run for a target."""
    return make("-n", "--no-print-directory", *arguments, **variables).splitlines()


@pytest.mark.parametrize(
    ("target", "variables", "told"),
    [
        ("sweep", ["MODEL=tiny", "TOKENS=1"], ["TOKENS=1", "MODEL=tiny"]),
        ("sweep", ["ARGS=model=mixtral skew=1.2"], ["model=mixtral", "skew=1.2"]),
        ("sweep", [], ["study=throughput"]),
        ("sweep", ["STUDY=skew", "RESULTS=~/it's my folder"], ["RESULTS=~/it's my folder", "STUDY=skew"]),
        ("sweep", ["ARGS=-m", "MODEL=glob(qwen*)"], ["MODEL=glob(qwen*)", "-m"]),
        ("tune", ["MODEL=mixtral", "TOKENS=[1,8]"], ["TOKENS=[1,8]", "MODEL=mixtral"]),
        ("report", ["DEVICE=nvidia-h200"], ["DEVICE=nvidia-h200"]),
        ("figures", ["ONLY=headline"], ["ONLY=headline"]),
        ("contribute", ["DEVICE=nvidia-a100"], ["DEVICE=nvidia-a100"]),
        ("portability", ["TARGETS=gfx942", "BRIEF=true"], ["BRIEF=true", "TARGETS=gfx942"]),
        ("papertests", ["RESULTS=here"], ["RESULTS=here"]),
    ],
)
def test_make_hands_its_variables_to_the_command(target, variables, told, tmp_path):
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    show.chmod(0o755)
    assert sorted(make("-s", target, "VENV=0", f"PY={show}", *variables).splitlines()) == sorted(told)


@pytest.mark.parametrize("gpu", ["", "NVIDIA H200"])
def test_the_release_of_torch_is_one_that_pip_can_read(gpu):
    [line] = [line for line in planned("setup", "-B", GPU=gpu) if '"torch' in line]
    assert re.search(r'"torch(==[0-9.]+|>=[0-9.]+,<[0-9.]+)"', line), line


def test_a_reproduction_with_a_gpu_tells_the_whole_and_begins_with_two_systems():
    lines = planned("reproduce", GPU="NVIDIA H200", VENV="0", PY="python")
    commands = [line for line in lines if line.startswith("python ")]
    assert "within a minute" in lines[0]
    studies = "throughput,paper_code,skew,counters,heights,fusion,decode,stages,experts"
    assert commands[0] == f"python experiments/sweep.py -m study={studies} dry_run=true"
    assert commands[1].split() == [
        "python",
        "experiments/sweep.py",
        "study=smoke",
        "force=true",
        "implementations=[paper_fused,fast]",
        "dtype=bf16",
    ]
    assert commands[2].strip() == f"python experiments/sweep.py -m study={studies}"
    assert not any("study=traffic" in line for line in commands)
    theirs = ["experiments/papertests.py"] if (ROOT / ".peers" / "tritonmoe" / "tests").exists() else []
    assert [line.split()[1] for line in commands[3:]] == [*theirs, "plots/draw.py", "experiments/report.py"]


def test_the_studies_take_keys_too():
    [command] = planned("studies", GPU="", VENV="0", PY="python", ALL_STUDIES="skew fusion", FORCE="true")
    assert command.split() == ["python", "experiments/sweep.py", "-m", "study=skew,fusion", "'FORCE=true'"]


def test_a_reproduction_without_a_gpu_ends_with_what_agrees():
    lines = planned("reproduce", GPU="", VENV="0", PY="python")
    commands = [line for line in lines if "python " in line]
    assert [" ".join(line.split()[2:]) for line in commands[:2]] == [
        "study=smoke force=true strict=true", "study=traffic force=true strict=true",
    ]  # fmt: skip
    assert commands[-1].endswith("python -m tritonmoe_bench.experiments.analysis.committed")


def test_the_tiny_shape_is_run_by_every_system_that_is_asked_for():
    [line] = [
        line for line in planned("smoke", GPU="H200", VENV="0", PY="python", IMPLEMENTATIONS="field") if "sweep" in line
    ]
    assert line.split()[2:] == ["study=smoke", "force=true", "'IMPLEMENTATIONS=field'"]


def test_another_torch_that_is_named_is_installed_into_a_venv_that_is_there(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".torch").write_text("torch==2.13.0\n", encoding="utf-8")
    (tmp_path / ".venv" / ".ready").touch()
    folder = ["-C", str(tmp_path)]
    assert planned(*folder, "setup") == planned(*folder, "setup", TORCH="torch==2.13.0")
    assert not any("pip" in line for line in planned(*folder, "setup"))
    lines = planned(*folder, "setup", TORCH="torch==2.12.0")
    assert any(line.endswith('install -q --disable-pip-version-check "torch==2.12.0"') for line in lines)
    assert lines[-2:] == ["echo 'torch==2.12.0' > .venv/.torch", "touch .venv/.ready"]


def test_every_target_is_in_the_help():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    listed = re.findall(r"^  make (\w+) ", make("help"), re.MULTILINE)
    assert set(listed) == set(phony.split())


def test_clean_removes_what_setup_leaves_and_keeps_what_takes_long():
    [line] = planned("clean")
    removed = line.split()
    assert {".venv", "build", "*.egg-info", ".src/*.egg-info"} <= set(removed)
    assert not {".peers", ".megablocks", "results"} & set(removed)
    [told] = [line for line in make("help").splitlines() if line.split()[:2] == ["make", "clean"]]
    assert ".peers and .megablocks" in told


def test_the_help_of_choose_names_every_key_that_a_variable_of_make_can_be():
    [told] = [line for line in make("help").splitlines() if line.split()[:2] == ["make", "choose"]]
    keys = {field.name for field in fields(Question)} - {"num_experts", "top_k", "ffn_dim", "results"}
    assert {name.upper() for name in keys} == set(re.findall(r"\b([A-Z]+)=", told))
