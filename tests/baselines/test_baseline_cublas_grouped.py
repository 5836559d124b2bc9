"""`cublas_grouped` without a GPU, over a STUB of libcublas.

Its grouped GEMM multiplies what lies at the raw addresses, read column-major as cuBLAS does.
"""

from __future__ import annotations

import ctypes
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import cublas_grouped
from tritonmoe_bench.baselines.parts.cublas import library
from tritonmoe_bench.baselines.parts.cublas.problems import ExpertGemm, Groups
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.reference import relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

case = partial(tiny_layer.case, ffn_dim=40)

i32, i64, pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
ints, floats, addresses = (ctypes.POINTER(kind) for kind in (i32, ctypes.c_float, i64))
# cublasGemmGroupedBatchedEx as cublas_api.h of CUDA 13.0 declares it.
PROTOTYPE = ctypes.CFUNCTYPE(
    i32, pointer, ints, ints, ints, ints, ints, floats, addresses, i32, ints, addresses, i32, ints, floats, addresses,
    i32, ints, i32, ints, i32,
)  # fmt: skip
INVALID_VALUE = 7
TYPES = {14: torch.bfloat16, 2: torch.float16}


def columns(address: int, rows: int, cols: int, leading: int, dtype: torch.dtype) -> torch.Tensor:
    """The column-major rows x cols matrix with that leading dimension: a view of the memory itself."""
    words = np.ctypeslib.as_array((ctypes.c_int16 * (leading * cols)).from_address(address))
    return torch.from_numpy(words).view(dtype).view(cols, leading).T[:rows]


class StubCublas:
    """A STUB of libcublas: what the adapter calls of it, on memory of the CPU."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[list[tuple]] = []
        self.handles: list[tuple] = []
        self.status = status
        self.cublasCreate_v2 = ctypes.CFUNCTYPE(i32, ctypes.POINTER(pointer))(self._create)
        self.cublasSetStream_v2 = ctypes.CFUNCTYPE(i32, pointer, pointer)(self._note("stream"))
        self.cublasSetWorkspace_v2 = ctypes.CFUNCTYPE(i32, pointer, pointer, ctypes.c_size_t)(self._note("workspace"))
        self.cublasGetProperty = ctypes.CFUNCTYPE(i32, i32, ints)(self._property)
        self.cublasGemmGroupedBatchedEx = PROTOTYPE(self._gemm)

    def _create(self, handle) -> int:
        handle[0] = 77
        return 0

    def _note(self, name):
        def function(handle, *arguments) -> int:
            self.handles.append((name, handle, *arguments))
            return 0

        return function

    def _property(self, kind, value) -> int:
        value[0] = (13, 1, 4)[kind]
        return 0

    def _gemm(self, handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc,
              group_count, group_size, compute) -> int:  # fmt: skip
        if (handle, compute, a_type, b_type) != (77, 68, c_type, c_type):
            return INVALID_VALUE
        dtype, problem, groups = TYPES[c_type], 0, []
        for group in range(group_count):
            groups.append((m[group], n[group], k[group], group_size[group]))
            for _ in range(group_size[group]):
                shape_a = (m[group], k[group])[:: -1 if transa[group] else 1]
                shape_b = (k[group], n[group])[:: -1 if transb[group] else 1]
                if lda[group] < shape_a[0] or ldb[group] < shape_b[0] or ldc[group] < m[group]:
                    return INVALID_VALUE
                if any(pointers[problem] % 16 for pointers in (a, b, c)):
                    return INVALID_VALUE
                left = columns(a[problem], *shape_a, lda[group], dtype).float()
                right = columns(b[problem], *shape_b, ldb[group], dtype).float()
                out = columns(c[problem], m[group], n[group], ldc[group], dtype)
                left, right = (left.T if transa[group] else left), (right.T if transb[group] else right)
                added = beta[group] * out.float() if beta[group] else 0
                out.copy_(alpha[group] * (left @ right) + added)
                problem += 1
        self.calls.append(groups)
        return self.status


@pytest.fixture
def stub() -> StubCublas:
    return library.declared(StubCublas())


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("fields", tiny_layer.VARIED, ids=str)
def test_grouped_forward_over_the_stub_agrees_with_the_reference(stub, fields):
    made = case(**fields)
    weights = Weights(made, "cpu")
    forward = cublas_grouped.grouped_forward(made, weights, stub)
    with torch.inference_mode():
        error, torch_error = tiny_layer.errors(forward, made, weights)
    assert error <= 1.5 * torch_error
    counts = [int(count) for count in draw_routing(made).counts if count]
    gate_up, down = stub.calls
    assert gate_up == [(2 * made.ffn_dim, count, made.hidden_dim, 1) for count in counts]
    assert down == [(made.hidden_dim, count, made.ffn_dim, 1) for count in counts]


@tiny_layer.ON_THE_CPU
def test_a_second_forward_uses_its_own_routing(stub):
    first, second = case(tokens=9), case(tokens=9, skew=2.0)
    weights = Weights(first, "cpu")
    forward = cublas_grouped.grouped_forward(first, weights, stub)
    for made in (first, second, first):
        with torch.inference_mode():
            error, torch_error = tiny_layer.errors(forward, made, weights)
        assert error <= 1.5 * torch_error
    assert stub.calls[0] == stub.calls[4] != stub.calls[2]


def test_the_handle_has_a_stream_and_a_workspace_of_its_own(stub):
    handle = library.Handle(stub, torch.device("cpu"))
    gemm, ends = ExpertGemm(torch.ones(2, 8, 16, dtype=torch.bfloat16)), np.array([0, 3])
    rows, out = torch.ones(3, 16, dtype=torch.bfloat16), torch.zeros(3, 8, dtype=torch.bfloat16)
    for _ in range(2):
        pointers = gemm.pointers(Groups(ends), rows, out)
        gemm.launch(handle, Groups(ends), pointers.ctypes.data)
    assert [name for name, *_ in stub.handles] == ["stream", "workspace"]
    assert {arguments[0] for _, *arguments in stub.handles} == {77}
    assert stub.handles[1][3] == library.WORKSPACE_BYTES
    assert stub.calls == [[(8, 3, 16, 1)]] * 2
    assert out.eq(16).all()


# The place of an argument after the handle, and what is wrong about it: [expert 1 has 3 rows of 64, its n is 80].
WRONG = {"transa": (0, 0), "transb": (1, 1), "m": (2, 40), "n": (3, 2), "k": (4, 32), "lda": (8, 72), "ldb": (11, 72),
         "ldc": (15, 88)}  # fmt: skip


@pytest.mark.parametrize("name", ["nothing", *WRONG])
def test_the_stub_sees_a_wrong_transposition_or_size(stub, name):
    made = case()
    weights = Weights(made, "cpu").gate_up()
    gemm, groups = ExpertGemm(weights), Groups(np.array([0, 3, 3, 3, 3, 3, 3, 3]))
    rows = torch.randn(72, made.hidden_dim, dtype=torch.bfloat16)  # more than 3, for what a wrong size reads
    out = torch.zeros(72, 2 * made.ffn_dim, dtype=torch.bfloat16)
    handle = library.Handle(stub, torch.device("cpu"))

    def launch(*arguments):
        changed = list(arguments)
        if name in WRONG:
            place, value = WRONG[name]
            wrong = np.full(len(groups), value, np.int32)
            changed[place] = wrong.ctypes.data
        handle.grouped_gemm(*changed)

    pointers = gemm.pointers(groups, rows, out)
    if name == "transa":
        with pytest.raises(library.CublasError, match="status 7"):
            gemm.launch(SimpleNamespace(grouped_gemm=launch), groups, pointers.ctypes.data)
        return
    gemm.launch(SimpleNamespace(grouped_gemm=launch), groups, pointers.ctypes.data)
    error = relative_error(out[:3].float(), rows[:3].float() @ weights[1].float().T)
    assert (error < 5e-3 and not out[3:].any()) == (name == "nothing")


def test_a_status_is_an_error(stub):
    stub.status = 15
    made = case()
    forward = cublas_grouped.grouped_forward(made, Weights(made, "cpu"), stub)
    with pytest.raises(library.CublasError, match="cublasGemmGroupedBatchedEx returned status 15"):
        forward(activations(made, draw_routing(made), "cpu"))


def test_groups_are_the_active_experts():
    groups = Groups(np.array([0, 2, 2, 7, 7]))
    assert len(groups) == 2
    assert groups.active.tolist() == [1, 3]
    assert groups.starts.tolist() == [0, 2]
    assert groups.counts.tolist() == [2, 5]
    assert groups.counts.dtype == np.int32


@pytest.fixture
def nothing_kept():
    """No answer kept from another test."""
    for cached in (cublas_grouped._problem, cublas_grouped._version):
        cached.cache_clear()
    yield
    for cached in (cublas_grouped._problem, cublas_grouped._version):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError("libcublas.so.13: no such file"), "no such file: pip install"),
        (AttributeError("undefined symbol"), "too old, undefined symbol: pip install"),
    ],
)
def test_unavailable_without_a_usable_cublas(nothing_kept, monkeypatch, failure, words):
    def load():
        raise failure

    monkeypatch.setattr(library, "load", load)
    adapter = cublas_grouped.CublasGrouped()
    check = adapter.check(case())
    assert check.status is Status.UNAVAILABLE
    assert words in check.reason
    assert adapter.version() == ""


def test_check_with_a_cublas(nothing_kept, stub, monkeypatch):
    monkeypatch.setattr(library, "load", lambda: stub)
    adapter = cublas_grouped.CublasGrouped()
    assert adapter.version() == "cuBLAS 13.1.4"
    assert adapter.check(case()).status is Status.OK
    check = adapter.check(case(ffn_dim=36))
    assert (check.status, "ffn_dim=36" in check.reason) == (Status.UNSUPPORTED, True)
    assert "host memory" in adapter.host_sync
