"""`fastmoe` over a STUB of the part of FastMoE 1.1 that the adapter calls, in PyTorch; and without FastMoE."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny_layer import ON_THE_CPU, case, errors, stub_modules

from tritonmoe_bench.baselines import fastmoe
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.routing import draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """No checkout, and no answer kept from another test."""
    monkeypatch.delenv("TRITONMOE_FASTMOE_PATH", raising=False)
    for cached in (fastmoe._problem, fastmoe._refusal):
        cached.cache_clear()
    yield
    for cached in (fastmoe._problem, fastmoe._refusal):
        cached.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """STUBS of fmoe_cuda, fmoe.layers.FMoE and fmoe.linear.MOELinear; they note the calls."""
    calls: list[tuple] = []
    _, layers, linear = stub_modules(monkeypatch, "fmoe_cuda", "fmoe.layers", "fmoe.linear")

    class MOELinear:
        @staticmethod
        def apply(rows, counts, weight, bias=None):
            """weight [experts, out, in]; counts on the CPU, int64, as prepare_forward leaves them."""
            assert (counts.device.type, counts.dtype, bias) == ("cpu", torch.int64, None)
            assert int(counts.sum()) == rows.shape[0]
            calls.append(("linear", tuple(weight.shape), counts.tolist(), weight.data_ptr()))
            parts = rows.split(counts.tolist())
            return torch.cat([part @ weight[expert].T for expert, part in enumerate(parts)])

    class FMoE(torch.nn.Module):
        def __init__(self, num_expert=32, d_model=1024, world_size=1, mp_group=None, slice_group=None, moe_group=None,
                     top_k=2, gate=None, expert=None):  # fmt: skip
            super().__init__()
            assert (world_size, expert) == (1, None)
            self.num_expert, self.top_k, self.d_model = num_expert, top_k, d_model
            self.gate = gate(d_model, num_expert, world_size, top_k)
            calls.append(("layer", num_expert, d_model, top_k))

        def forward(self, x):
            experts, scores = self.gate(x)
            assert experts.shape == (x.shape[0], self.top_k)
            assert experts.dtype == torch.int64
            assert experts.is_contiguous()
            order = experts.flatten().argsort(stable=True)
            counts = experts.flatten().bincount(minlength=self.num_expert)
            out = self.experts(x[order // self.top_k], counts)
            slots = torch.zeros_like(out).index_copy_(0, order, out)
            return torch.bmm(scores.view(-1, 1, self.top_k), slots.view(-1, self.top_k, self.d_model)).squeeze(1)

    layers.FMoE, linear.MOELinear = FMoE, MOELinear
    return calls


@ON_THE_CPU
@pytest.mark.parametrize(
    "fields", [{}, {"dtype": "fp16", "tokens": 1}, {"gating": "sigmoid", "tokens": 20, "skew": 1.5}], ids=str
)
def test_forward_agrees_with_the_reference(stub, fields):
    made = case(**fields)
    adapter, weights = fastmoe.FastMoe(), Weights(made, "cpu")
    assert adapter.check(made).status is Status.OK
    forward = adapter.build(made, weights)
    stub.clear()
    error, torch_error = errors(forward, made, weights)
    assert error <= 1.5 * torch_error
    counts = draw_routing(made).counts.tolist()
    assert stub == [
        ("linear", (8, 2 * made.ffn_dim, made.hidden_dim), counts, weights.gate_up().data_ptr()),
        ("linear", (8, made.hidden_dim, made.ffn_dim), counts, weights.down().data_ptr()),
    ]


def test_unavailable_without_it_with_the_one_command(monkeypatch, tmp_path):
    adapter = fastmoe.FastMoe()
    check = adapter.check(case())
    assert check.status is Status.UNAVAILABLE
    assert "No module named 'fmoe_cuda'" in check.reason
    assert "git clone https://github.com/laekov/fastmoe fastmoe && (cd fastmoe" in check.reason
    assert check.reason.endswith("&& export TRITONMOE_FASTMOE_PATH=$PWD/fastmoe")
    assert adapter.version() == ""
    assert adapter.search_path() == []
    (tmp_path / "fmoe").mkdir()
    monkeypatch.setenv("TRITONMOE_FASTMOE_PATH", str(tmp_path))
    assert adapter.search_path() == [tmp_path]
    assert adapter.version() == "checkout"


def test_a_dtype_that_its_kernels_refuse_is_unsupported(stub, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("ones", "tensor"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=made, device=None, **kw: make(*a, **kw))

    def apply(rows, counts, weight, bias=None):
        if rows.dtype == torch.bfloat16:
            raise RuntimeError("\"moe\" not implemented for 'BFloat16'\nand more")
        return rows

    monkeypatch.setattr(sys.modules["fmoe.linear"].MOELinear, "apply", staticmethod(apply))
    check = fastmoe.FastMoe().check(case())
    assert check.status is Status.UNSUPPORTED
    assert check.reason.endswith("does not take bf16: RuntimeError: \"moe\" not implemented for 'BFloat16'")
    assert fastmoe.FastMoe().check(case(dtype="fp16")).status is Status.OK


def test_it_says_why_a_graph_cannot_hold_it_and_what_fastermoe_does():
    assert "item()" in fastmoe.FastMoe.host_sync
    assert "FasterMoE's path on one GPU is this one" in fastmoe.FastMoe().config(case())
