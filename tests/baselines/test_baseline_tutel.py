"""The adapter of Tutel over a stub of the API that it calls."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from tiny_layer import case, errors, stub_modules
from torch import nn

from tritonmoe_bench.baselines import tutel as adapters
from tritonmoe_bench.experiments.workload.weights import Weights

ADAPTERS = (adapters.Tutel(), adapters.TutelMegablocks())


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch):
    monkeypatch.delenv("TRITONMOE_TUTEL_PATH", raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    adapters._problem.cache_clear()
    adapters._kept.clear()
    adapters._dtype_in_use.clear()


class Experts(nn.Module):
    """A STUB of tutel.experts.llama_ffn.ExpertModule: weights [E, in, out] held flat."""

    def __init__(self, model_dim, hidden_size_per_expert, local_experts, sharded_count):
        super().__init__()
        assert sharded_count == 1
        self.up = (local_experts, model_dim, hidden_size_per_expert)
        self.down = (local_experts, hidden_size_per_expert, model_dim)
        size = local_experts * model_dim * hidden_size_per_expert
        self.W_fc1, self.W_fc2, self.W_fc3 = (nn.Parameter(torch.empty(size)) for _ in range(3))
        assert self.W_fc1.is_meta

    def forward(self, x, ctx):
        gate, up = x @ self.W_fc1.view(self.up), x @ self.W_fc2.view(self.up)
        return (nn.functional.silu(gate) * up) @ self.W_fc3.view(self.down)


class Layer(nn.Module):
    """A STUB of tutel.moe.moe_layer, of the commit f75e135a, in PyTorch: every expert is padded to all tokens."""

    def __init__(self, gate_type, model_dim, experts, normalize_gate=True):
        super().__init__()
        assert gate_type.pop("type") == "top"
        self.capacity_factor, self.top_k = gate_type["capacity_factor"], gate_type["k"]
        self.normalize_gate = normalize_gate
        assert experts.pop("type") == "custom"
        count = experts.pop("count_per_node")
        self.experts = experts.pop("module")(**experts, model_dim=model_dim, local_experts=count, sharded_count=1)
        gate = nn.Module()
        gate.wg = nn.Linear(model_dim, count, bias=False)
        self.gates = nn.ModuleList([gate])

    def forward(self, x, megablocks_size=0):
        assert self.capacity_factor == 0
        assert not torch.is_grad_enabled()  # Tutel turns megablocks_size off where it is
        Dispatcher.kernels(x.dtype)
        scores, chosen = self.gates[0].wg(x).float().softmax(-1).topk(self.top_k, dim=-1)
        scores = scores / scores.sum(-1, keepdim=True) if self.normalize_gate else scores
        count = self.gates[0].wg.out_features
        hot = torch.nn.functional.one_hot(chosen.flatten(), count)
        place = (hot.cumsum(0) * hot).sum(1) - 1  # of each slot among the rows of its expert
        self.megablocks_size, self.dispatch_count = megablocks_size, hot.sum(0).int()
        padded = x.new_zeros(count, len(x), x.shape[1])
        padded[chosen.flatten(), place] = x.repeat_interleave(self.top_k, 0)
        out = self.experts(padded, self)[chosen.flatten(), place].view(len(x), self.top_k, -1)
        return (out * scores.unsqueeze(-1)).sum(1).to(x.dtype)


class Dispatcher:
    """A STUB of TutelMoeFastDispatcher: it keeps the kernels that it compiles by device, whatever their dtype."""

    kernel_pool: ClassVar[dict] = {}
    ones_helper: ClassVar[torch.Tensor | None] = None

    @classmethod
    def kernels(cls, dtype):
        if cls.ones_helper is None:
            cls.ones_helper = torch.ones(1, dtype=dtype)
        if "cpu" not in cls.kernel_pool:
            cls.kernel_pool["cpu"] = dtype
            COMPILED.append(dtype)
        assert cls.kernel_pool["cpu"] == cls.ones_helper.dtype == dtype, "kernels of another dtype"


COMPILED: list[torch.dtype] = []


def sparse_bmm_infer(x, weights, blocks, transposed, size):
    """A STUB of the operator: rows beyond the blocks of an expert are left as they are, here NaN."""
    assert blocks.shape == (weights.shape[0],)
    y = torch.full((*x.shape[:2], weights.shape[1 if transposed else 2]), float("nan"), dtype=x.dtype)
    for expert, count in enumerate((blocks * size).tolist()):
        y[expert, :count] = x[expert, :count] @ (weights[expert].T if transposed else weights[expert])
    return y


@pytest.fixture
def stub(monkeypatch):
    names = ("tutel.moe", "tutel.experts.llama_ffn", "tutel.impls.fast_dispatch")
    moe, llama_ffn, fast_dispatch = stub_modules(monkeypatch, *names)
    moe.moe_layer, llama_ffn.ExpertModule = Layer, Experts
    fast_dispatch.TutelMoeFastDispatcher = Dispatcher
    monkeypatch.setattr(Dispatcher, "kernel_pool", {})
    monkeypatch.setattr(Dispatcher, "ones_helper", None)
    monkeypatch.setattr(torch.ops, "tutel_ops", SimpleNamespace(sparse_bmm_infer=sparse_bmm_infer), raising=False)
    COMPILED.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_unavailable_says_why_and_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "tutel", None)
    check = adapters.Tutel().check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(
        ": git clone https://github.com/microsoft/tutel tutel && (cd tutel && python setup.py build_ext --inplace) && "
        "export TRITONMOE_TUTEL_PATH=$PWD/tutel"
    )
    assert adapters.Tutel().version() == ""


def test_both_rows_come_out_of_one_checkout(monkeypatch, tmp_path):
    (tmp_path / "tutel").mkdir()
    monkeypatch.setenv("TRITONMOE_TUTEL_PATH", str(tmp_path))
    assert [adapter.search_path() for adapter in ADAPTERS] == [[tmp_path.resolve()]] * 2


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm"])
def test_layouts_and_flags(stub, adapter, gating):
    point = case(gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert adapter.host_sync
    weights = Weights(point, "cpu")
    assert errors(adapter.build(point, weights), point, weights)[0] < 0.01


def test_weights_are_not_copied(stub):
    point = case()
    weights = Weights(point, "cpu")
    padded, sparse = adapters._padded_experts(point, weights), adapters._sparse_experts(point, weights)
    for held, tensor in (
        (padded.W_fc1, weights.gate("kn")), (padded.W_fc2, weights.up("kn")), (padded.W_fc3, weights.down("kn")),
        (sparse.gate_up, weights.gate_up("nk")), (sparse.down, weights.down("nk")),
    ):  # fmt: skip
        assert held.data_ptr() == tensor.data_ptr()


def test_each_dtype_has_its_own_kernels(stub):
    forwards = {}
    for dtype in ("bf16", "fp16"):
        point = case(dtype=dtype)
        weights = Weights(point, "cpu")
        forwards[dtype] = (adapters.Tutel().build(point, weights), point, weights)
    for dtype in ("bf16", "fp16", "bf16"):
        assert errors(*forwards[dtype])[0] < 0.01
    assert [torch.bfloat16, torch.float16] == COMPILED  # each once


def test_a_single_expert_has_no_megablocks_mode(stub):
    check = adapters.TutelMegablocks().check(case(num_experts=1, top_k=1))
    assert check.status.value == "unsupported"
    assert adapters.Tutel().check(case(num_experts=1, top_k=1)).status.value == "ok"


def test_experts_of_another_shape_are_an_error(stub, monkeypatch):
    point = case()
    weights = Weights(point, "cpu")
    monkeypatch.setattr(weights, "gate", lambda layout: torch.zeros(3, 5))
    with pytest.raises(ValueError, match="wants W_fc1 as"):
        adapters.Tutel().build(point, weights)


@pytest.mark.parametrize(
    ("fields", "word"), [({"gating": "sigmoid"}, "softmax"), ({"hidden_dim": 63}, "even hidden_dim")]
)
def test_unsupported(stub, fields, word):
    check = adapters.Tutel().check(case(**fields))
    assert check.status.value == "unsupported"
    assert word in check.reason
