"""What all tests share: the interpreter where there is no GPU, and the record of outcomes."""

import os

from tritonmoe_bench.experiments import checkout

checkout.bind()  # `python -m pytest` puts the checkout itself on the import path, where `kernels` would be ours

# The cores belong to pytest-xdist's workers: more threads than cores spend most of their time spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

import pytest  # noqa: E402

pytest.register_assert_rewrite("moe_cases", "tiny_layer")

from outcomes import (  # noqa: E402, F401
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

if not HAS_GPU:
    from tritonmoe_bench.experiments.interpreter import counting, repair

    repair.install()

with torch.device("meta"):  # PyTorch notes now what makes tensors, and not while a test has replaced torch.empty
    torch.empty(0)


def pytest_collection_modifyitems(items):
    """The slow tests first: one that is begun last keeps a single worker busy while the others wait."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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
