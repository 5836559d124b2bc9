"""How the interpreter is repaired: once, for whom, and what a variable that is set too late says."""

import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from interpreter_cases import INTERPRETED, assert_same, random_bf16

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.interpreter import repair

pytestmark = INTERPRETED


@triton.jit
def double(a):
    return a + tl.maximum(a, a)


@triton.jit
def nested_kernel(a_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    a = tl.load(a_ptr + offsets)
    for _ in tl.static_range(5):
        a = double(a)
    tl.store(out_ptr + offsets, a + tl.sum(tl.zeros_like(a), axis=0))


def test_nested_calls_patch_what_they_see_once_a_launch(monkeypatch):
    from triton.runtime import interpreter as triton_interpreter

    patched = []
    patch = triton_interpreter._patch_lang
    monkeypatch.setattr(triton_interpreter, "_patch_lang", lambda fn: patched.append(fn.__module__) or patch(fn))
    a = random_bf16(10, special=False)
    for _ in range(2):
        patched.clear()
        out = torch.empty_like(a)
        nested_kernel[(3,)](a, out, N=a.numel())
        assert_same(out, 32 * a)
        nested = patched[1:]  # the first is the launch itself
        assert __name__ in nested
        assert len(nested) == len(set(nested))


def test_install_twice_changes_nothing():
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps

    before = InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl, ReduceOps.sum
    repair.install()
    assert (InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl, ReduceOps.sum) == before


def test_install_refuses_a_compiling_triton():
    code = "from tritonmoe_bench.experiments.interpreter import repair; repair.install()"
    environment = checkout.compiler_environment()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode != 0
    assert "RuntimeError: Triton's interpreter is off" in done.stderr


LATE = """
import os
{imports}
os.environ["TRITON_INTERPRET"] = "1"
import torch
from tritonmoe_bench.kernels import fast_moe, paper_moe
layer = [torch.zeros(shape, dtype=torch.float16) for shape in ((6, 32), (8, 32), (8, 32, 32), (8, 32, 16))]
for moe in (fast_moe, paper_moe):
    try:
        moe(*layer, 2)
    except ValueError as error:
        print(error)
"""
REPAIR = """
import re, torch
from tritonmoe_bench.kernels import fast_moe
x, *weights = [torch.ones(shape, dtype=torch.bfloat16) / 8 for shape in ((6, 32), (8, 32), (8, 32, 32), (8, 32, 16))]
try:
    fast_moe(x, *weights, 2)
except TypeError as error:
    exec(re.search("`(.*)`", str(error))[1])
y = fast_moe(x, *weights, 2)
right = fast_moe(x.half(), *(weight.half() for weight in weights), 2)
assert (y.float() - right.float()).abs().max() <= 2**-8 * right.float().abs().max(), (y, right)
print("right")
"""


def run(code, **changes):
    environment = checkout.compiler_environment()
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", env=environment | changes
    )


@pytest.mark.parametrize("imports", ["import triton", "from tritonmoe_bench.kernels import fast_moe"])
def test_a_variable_that_is_set_too_late_is_one_clear_error(imports):
    """As in a notebook, whose first cell imports us: not an error of a driver that is not there."""
    done = run(LATE.format(imports=imports))
    assert done.stdout.splitlines() == 2 * [
        "x is on cpu: move it to a GPU, or for CPU tensors set TRITON_INTERPRET=1 before triton is imported, which it "
        "was when you set it: restart Python"
    ], done.stderr


def test_bfloat16_on_a_cpu_works_by_the_call_that_the_error_names():
    done = run(REPAIR, TRITON_INTERPRET="1")
    assert done.stdout == "right\n", done.stderr
