"""`cublas_grouped` and `cublas_streams` without a GPU.

STUBS: a libcublas whose grouped GEMM multiplies what lies at the raw addresses, read column-major as cuBLAS does, and
the streams and events of torch.cuda, which note in what order they were asked for what.
"""

from __future__ import annotations

import ctypes
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import cublas_grouped, cublas_streams
from tritonmoe_bench.baselines.parts.by_expert import ByExpert
from tritonmoe_bench.baselines.parts.cublas import library
from tritonmoe_bench.baselines.parts.cublas.problems import ExpertGemm, Groups
from tritonmoe_bench.baselines.parts.host_ends import HostEnds
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.reference import relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

case = partial(tiny_layer.case, ffn_dim=40)
CASES = [
    {"dtype": "bf16"},
    {"dtype": "fp16", "tokens": 33, "gating": "softmax_renorm"},
    {"tokens": 1, "num_experts": 16, "top_k": 4},
    {"tokens": 40, "skew": 2.0, "gating": "sigmoid"},
]

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


@pytest.mark.parametrize("fields", CASES, ids=str)
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


def test_rows_are_sorted_by_expert_in_the_order_of_tokens():
    made = case(tokens=12)
    weights, routing = Weights(made, "cpu"), draw_routing(made)
    layer, x = ByExpert(made, weights), activations(made, routing, "cpu")
    slots = layer.sort(x)
    assert slots.ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist() == routing.counts.tolist()
    experts = torch.from_numpy(routing.experts).flatten()[slots.order]
    keys = experts * len(slots.order) + slots.order
    assert keys.diff().gt(0).all()
    assert torch.equal(layer.rows(x, slots), x[slots.order // made.top_k])


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


class StubLanes:
    """A STUB of torch.cuda's streams and events: what was asked for, in order."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple] = []
        self.current: object = SimpleNamespace(name="main", wait_event=lambda e: self.log.append(("wait", "main", e)))
        made = iter(range(100))

        def stream(device):
            name = f"s{next(made)}"
            return SimpleNamespace(name=name, wait_event=lambda event: self.log.append(("wait", name, event)))

        def event():
            note = SimpleNamespace()
            note.record = lambda stream: self.log.append(("record", stream.name, note))
            return note

        def set_stream(stream):
            self.current = stream

        monkeypatch.setattr(torch.cuda, "Stream", stream)
        monkeypatch.setattr(torch.cuda, "Event", event)
        monkeypatch.setattr(torch.cuda, "set_stream", set_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        multiply = torch.mm

        def mm(a, b, *, out):
            self.log.append(("mm", self.current.name, tuple(out.shape)))
            return multiply(a, b, out=out)

        monkeypatch.setattr(torch, "mm", mm)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_streams_forward_agrees_and_every_stream_forks_and_joins(monkeypatch, count):
    made = case(tokens=6)
    weights = Weights(made, "cpu")
    stubs = StubLanes(monkeypatch)
    forward = cublas_streams.streams_forward(made, weights, cublas_streams.Lanes(count, torch.device("cpu")))
    counts = [int(load) for load in draw_routing(made).counts if load]
    with torch.inference_mode():
        forward(activations(made, draw_routing(made), "cpu"))
    log, used = stubs.log, min(count, len(counts))
    assert stubs.current.name == "main"
    assert len(log) == 2 * (1 + 3 * used + len(counts))
    widths = (2 * made.ffn_dim, made.hidden_dim)
    for loop, width in zip((log[: len(log) // 2], log[len(log) // 2 :]), widths):
        assert loop[0][:2] == ("record", "main")
        forked = loop[0][2]
        assert [entry[2] for entry in loop if entry[0] == "mm"] == [(load, width) for load in counts]
        for index in range(used):
            mine = [entry for entry in loop if entry[1] == f"s{index}"]
            kinds = [entry[0] for entry in mine]
            assert kinds == ["wait", *["mm"] * len(counts[index::count]), "record"]
            assert mine[0][2] is forked
            assert ("wait", "main", mine[-1][2]) in loop[loop.index(mine[-1]) :]
        assert {entry[1] for entry in loop} == {"main", *(f"s{index}" for index in range(used))}


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_streams_forward_agrees_with_the_reference(monkeypatch, fields):
    made = case(**fields)
    weights = Weights(made, "cpu")
    StubLanes(monkeypatch)
    forward = cublas_streams.streams_forward(made, weights, cublas_streams.Lanes(4, torch.device("cpu")))
    with torch.inference_mode():
        error, torch_error = tiny_layer.errors(forward, made, weights)
    assert error <= 1.5 * torch_error


def test_streams_check():
    adapter = cublas_streams.CublasStreams()
    check = adapter.check(case())
    assert (check.status is Status.OK) == bool(torch.version.cuda)
    assert torch.__version__.startswith(adapter.version())
    assert adapter.config(case()) == "streams=8"
    assert adapter.config(case(num_experts=64)) == "streams=16"


def test_host_ends_are_those_of_the_last_copy():
    ends = HostEnds(3, torch.device("cpu"))
    for values in ([1, 2, 3], [0, 0, 5]):
        ends.copy(torch.tensor(values))
        assert ends.wait().tolist() == values


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_silu_gate(name):
    from tritonmoe_bench.baselines.parts.silu_gate import silu_gate

    both = torch.randn(3, 2 * 40).to(TORCH_DTYPE[name])
    hidden = silu_gate(both, both.new_full((3, 40), float("nan")))
    expected = torch.nn.functional.silu(both[:, :40].float()) * both[:, 40:].float()
    assert relative_error(hidden, expected) < (4e-3 if name == "bf16" else 5e-4)
