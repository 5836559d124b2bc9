"""What `make tune` compiles ahead of its launches is what they look for in Triton's cache."""

import json
import subprocess
import sys

import pytest

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.tuning import compile
from tritonmoe_bench.experiments.tuning.record import encode
from tritonmoe_bench.experiments.tuning.space import Candidate
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.kernels.fast.tile_types import FastTile

CASE = Case("tiny", 8, 2, 128, 256, tokens=40)
DOWN = Candidate("down", 16, FastTile(64, 64, 4, 2, 64, 2))

LAUNCHES = """
import json, sys, warnings
import torch
from torch._subclasses import fake_tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction
from tritonmoe_bench.experiments.targets.device import pretend
from tritonmoe_bench.experiments.targets.gpus import TARGETS
from tritonmoe_bench.experiments.tuning import record

class Missed(Exception):
    pass

def misses(*_):
    raise Missed

def launch(kernel, *arguments, grid, warmup, **options):
    try:
        compiles(kernel, *arguments, grid=grid, warmup=True, **options)
        found.append((kernel.__name__, True))
    except Missed:
        found.append((kernel.__name__, False))

warnings.simplefilter("ignore")
pretend(TARGETS["sm_90"])
compiles, found = JITFunction.run, []
JITFunction.run, CUDABackend.add_stages = launch, misses
point = json.load(sys.stdin)
case, [candidate] = record.decode(point)
with torch.no_grad(), fake_tensor.FakeTensorMode():
    batch = record._blank_batch(case)
    record._shared_launches(batch, point["block_ms"])
    record.stage_call(candidate, batch)()
print(json.dumps(found))
"""


def in_cache():
    """(kernel, whether Triton's cache has it) of each launch that the tuner would do."""
    settings = {name: value for name, value in checkout.program_environment().items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES], input=json.dumps(encode(CASE, [DOWN], compile.heights([DOWN]))),
        capture_output=True, encoding="utf-8", env=settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_what_is_compiled_ahead_is_found_when_it_is_launched(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert not any(cached for _, cached in in_cache())
    assert compile.compile_points([(CASE, [DOWN])], "sm_90", 2, lambda said: None) == [{}]
    found = in_cache()
    assert [name for name, cached in found if not cached] == []
    assert {"_down_kernel", "_place_kernel"} <= {name for name, _ in found}
