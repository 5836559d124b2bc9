"""NVIDIA's compute-sanitizer over the shapes of study=granular: memory out of bounds, not written, or raced for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sanitized
import torch

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.workload.case import QUANTS
from tritonmoe_bench.experiments.workload.config import load

TOOL = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
SCRIPT = Path(sanitized.__file__)
FAULT = 9
LIMIT_S = 300


def run(*command):
    environment = checkout.program_environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")  # every tensor has bounds of its own
    done = subprocess.run(
        [*command, sys.executable, str(SCRIPT)], capture_output=True, encoding="utf-8", errors="replace",
        env=environment, timeout=LIMIT_S,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled():
    """The kernels are in Triton's cache, so that no compiler runs under the tool."""
    code, said = run()
    assert code == 0, said
    return said.count("\n")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not (TOOL and torch.cuda.is_available()), reason="needs an NVIDIA GPU and compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "initcheck", "racecheck"])
def test_nothing_is_found(compiled, tool):
    options = ["--tool", tool, "--error-exitcode", str(FAULT), "--target-processes", "application-only"]
    code, said = run(TOOL, *options)
    assert code == 0, said[-6000:]
    assert "ERROR SUMMARY: 0 errors" in said or "RACECHECK SUMMARY: 0 hazards" in said, said[-2000:]
    assert said.count(" tokens=") == len(sanitized.cases())


def test_its_layers_are_the_shapes_of_the_study_in_every_format():
    cases = sanitized.cases()
    study = load("study", "granular")
    models = {model for grid in study.grids for model in grid.models}
    assert {case.model.split()[0] for case in cases} == models
    assert {case.tokens for case in cases} == set(sanitized.TOKENS)
    assert {case.quant for case in cases} == set(QUANTS)


def test_a_layer_of_it_runs_here(device):
    [made] = [y for case, y in sanitized.run(device, "gpt_oss_20b E32 k4 tokens=1 ") if case.quant == "none"]
    assert torch.isfinite(made).all()
