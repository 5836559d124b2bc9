"""What `make tune` compiles ahead of its launches is what they look for in Triton's cache."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import triton

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.targets import ahead
from tritonmoe_bench.experiments.tuning import compile
from tritonmoe_bench.experiments.tuning.record import encode
from tritonmoe_bench.experiments.tuning.space import Candidate
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FewTile

CASE = Case("tiny", 8, 2, 128, 256, tokens=2)
CANDIDATES = [
    Candidate("gate_up", 16, FastTile(64, 64, 4, 2, 64, 2)), Candidate("down", 16, FastTile(64, 64, 4, 2, 64, 2)),
    Candidate("few_gate_up", 0, FewTile(64, 128, 4)),
]  # fmt: skip

LAUNCHES = """
import json, sys, warnings
import torch
from torch._subclasses import fake_tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction
from tritonmoe_bench.experiments.targets import ahead
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
ahead.keys_in_order(point["order"])
case, candidates = record.decode(point)
with torch.no_grad(), fake_tensor.FakeTensorMode():
    batch = record._blank_batch(case)
    for candidate in candidates:  # the tuner begins with those
        record.stage_call(candidate, batch)()
    record._shared_launches(batch, point["block_ms"])
print(json.dumps(found))
"""


def in_cache(order):
    """(kernel, whether Triton's cache has it) of each launch that the tuner would do, after `keys_in_order`."""
    point = encode(CASE, CANDIDATES, compile.heights(CANDIDATES)) | {"order": order}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES], input=json.dumps(point), capture_output=True, encoding="utf-8",
        env=checkout.compiler_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_what_is_compiled_ahead_is_found_when_it_is_launched(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    orders = []
    monkeypatch.setattr(compile, "keys_in_order", orders.append)
    assert compile.compile_points([(CASE, CANDIDATES)], "sm_90", 2, lambda said: None) == [{}]
    [order] = orders
    found = in_cache(order)
    assert [name for name, cached in found if not cached] == []
    assert {"_gate_up_kernel", "_down_kernel", "_few_gate_up_kernel", "_place_kernel"} <= {name for name, _ in found}


def test_kernels_get_their_keys_in_the_order_that_is_asked_for(monkeypatch):
    asked = []

    class Kernel(triton.JITFunction):
        def __init__(self, name):
            self.name = name

        @property
        def cache_key(self):
            asked.append(self.name)
            return ""

    made = SimpleNamespace(first=Kernel("first"), second=Kernel("second"), interpreted=object())
    monkeypatch.setitem(sys.modules, "made_up", made)
    ahead.keys_in_order([("made_up", name) for name in ("second", "interpreted", "first")])
    assert asked == ["second", "first"]


def test_constants_are_tuples_as_in_a_launch(monkeypatch):
    monkeypatch.setattr(triton.JITFunction, "_do_compile", lambda kernel, *what, warmup: (*what, warmup))
    ahead.constants_as_launched()
    compiled = triton.JITFunction._do_compile(
        None, "key", {}, 0, {(3,): [[16, 0], [32, 1]], (4,): 64}, "o", warmup=True
    )
    assert compiled == ("key", {}, 0, {(3,): ((16, 0), (32, 1)), (4,): 64}, "o", True)
