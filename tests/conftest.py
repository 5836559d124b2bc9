"""Binds this checkout as `tritonmoe_bench` for the tests, installed or not."""

import os
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "experiments" / "checkout.py"))

try:
    import torch

    HAS_GPU = torch.cuda.is_available()
except ImportError:
    HAS_GPU = False
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import pytest  # noqa: E402
from outcomes import pytest_runtest_logreport, pytest_sessionfinish  # noqa: E402, F401

if not HAS_GPU:
    from tritonmoe_bench.experiments import counting, interpreter

    interpreter.install()


@pytest.fixture(autouse=True, scope="module")
def bounds_checked():
    """In the interpreter, an access outside of its tensor is an error in every test."""
    if HAS_GPU:
        yield
    else:
        with counting.forbid_out_of_bounds():
            yield


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: the GPU, or the CPU under Triton's interpreter."""
    return "cuda" if HAS_GPU else "cpu"
