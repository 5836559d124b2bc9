"""NVIDIA's compute-sanitizer over the shapes of study=granular: memory out of bounds, not written, or raced for.

It takes a GPU for itself for some minutes, so it is run where it is asked for: TRITONMOE_SANITIZE=1.
"""

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
from tritonmoe_bench.experiments.workload.reference import relative_error

ASKED = os.environ.get("TRITONMOE_SANITIZE") == "1"
TOOL = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
NOTHING = {
    "memcheck": "ERROR SUMMARY: 0 errors", "initcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards",
}  # fmt: skip
SCRIPT = Path(sanitized.__file__)
FAULT = 9
LIMIT_S = 300
START_S = 120
"""Until a process under a tool uses the GPU. The tool's own limit is shorter than many take to import PyTorch."""
AT_ONCE = min(12, os.cpu_count() or 1)
"""Processes, each with its part of the layers: most of their time they compile, or start."""


def run(*command):
    """What the script said, over all parts. Every tensor has bounds of its own."""
    # Weights are made on the CPU: with a thread a core each, so many processes hinder each other.
    settings = checkout.program_environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1", OMP_NUM_THREADS="1")
    parts = [
        subprocess.Popen(
            [*command, sys.executable, str(SCRIPT), str(first), str(AT_ONCE)], env=settings, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )
        for first in range(AT_ONCE)
    ]  # fmt: skip
    try:
        said = [part.communicate(timeout=LIMIT_S)[0] for part in parts]
    finally:
        for part in parts:
            part.kill()
    for part, words in zip(parts, said):
        assert part.returncode == 0, words[-6000:]
    return said


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not (ASKED and torch.cuda.is_available()), reason="needs an NVIDIA GPU and TRITONMOE_SANITIZE=1")
def test_nothing_is_found():
    assert TOOL, "compute-sanitizer is not installed"
    run()  # compiles, so that no compiler runs under a tool
    for tool, nothing in NOTHING.items():
        options = ("--tool", tool, "--error-exitcode", str(FAULT), "--target-processes", "application-only",
                   "--launch-timeout", str(START_S))  # fmt: skip
        said = run(TOOL, *options)
        assert all(nothing in words for words in said), said
        forwards = sum(2 if case.quant == "none" else 1 for case in sanitized.cases())
        assert sum(words.count(" tokens=") for words in said) == forwards


def test_its_layers_are_the_shapes_of_the_study_in_every_format():
    cases = sanitized.cases()
    study = load("study", "granular")
    models = {model for grid in study.grids for model in grid.models}
    assert {case.model.split()[0] for case in cases} == models
    assert {case.tokens for case in cases} == set(sanitized.TOKENS)
    assert {case.quant for case in cases} == set(QUANTS)


def test_a_layer_of_it_runs_here(device):
    case = next(case for case in sanitized.cases() if case.model == "gpt_oss_20b" and case.tokens == 1)
    [(_, y), (_, in_tiles)] = sanitized.run(device, [case])
    assert torch.isfinite(y).all()
    assert relative_error(in_tiles, y.float()) < 1e-2  # other tiles, which sum in another order
