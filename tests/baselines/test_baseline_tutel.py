"""The adapter of Tutel over a stub of the API that it calls."""

import sys

import pytest
import torch
from tiny_layer import case, errors, stub_modules
from torch import nn

from tritonmoe_bench.baselines import tutel as adapters
from tritonmoe_bench.experiments.workload.weights import Weights


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch):
    monkeypatch.delenv("TRITONMOE_TUTEL_PATH", raising=False)
    adapters._problem.cache_clear()
    yield
    adapters._problem.cache_clear()


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
    """A STUB of tutel.moe.moe_layer, of the commit f75e135a, in PyTorch: capacity 0 pads to the largest load."""

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

    def forward(self, x):
        assert self.capacity_factor == 0
        scores, chosen = self.gates[0].wg(x).float().softmax(-1).topk(self.top_k, dim=-1)
        scores = scores / scores.sum(-1, keepdim=True) if self.normalize_gate else scores
        padded = x.new_zeros(self.experts.up[0], len(x), x.shape[1])
        padded[chosen, torch.arange(len(x))[:, None]] = x[:, None]
        out = self.experts(padded, self)
        return (out[chosen, torch.arange(len(x))[:, None]] * scores.unsqueeze(-1)).sum(1).to(x.dtype)


@pytest.fixture
def stub(monkeypatch):
    moe, llama_ffn = stub_modules(monkeypatch, "tutel.moe", "tutel.experts.llama_ffn")
    moe.moe_layer, llama_ffn.ExpertModule = Layer, Experts
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


@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm"])
def test_layouts_and_flags(stub, gating):
    adapter, point = adapters.Tutel(), case(gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert adapter.host_sync
    weights = Weights(point, "cpu")
    assert errors(adapter.build(point, weights), point, weights)[0] < 0.01


def test_weights_are_not_copied(stub):
    point = case()
    weights = Weights(point, "cpu")
    experts = adapters._layer(point, weights).experts
    for name, tensor in (("W_fc1", weights.gate("kn")), ("W_fc2", weights.up("kn")), ("W_fc3", weights.down("kn"))):
        assert getattr(experts, name).data_ptr() == tensor.data_ptr()


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
