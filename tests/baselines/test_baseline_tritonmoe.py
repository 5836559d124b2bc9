"""The adapter of the paper's own code over a stub of the one function that it calls."""

import sys

import pytest
import torch
import triton
from tiny_layer import case, error_of, stub_modules
from triton.runtime.autotuner import Autotuner

from tritonmoe_bench.baselines import tritonmoe as adapters
from tritonmoe_bench.experiments.workload.weights import Weights


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch):
    monkeypatch.delenv("TRITONMOE_TRITONMOE_PATH", raising=False)
    adapters._problem.cache_clear()
    yield
    adapters._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of triton_kernels.moe.fused_moe_forward, by its signature and docstring, in PyTorch; notes the calls."""
    calls: list[tuple] = []

    def fused_moe_forward(hidden_states, router_weight, w_gate, w_up, w_down, num_experts, top_k, gating="softmax"):
        calls.append((tuple(w_gate.shape), tuple(w_up.shape), tuple(w_down.shape), num_experts, top_k, gating))
        logits = hidden_states.float() @ router_weight.float().T
        scores = logits.softmax(-1) if gating == "softmax" else logits.sigmoid()
        weights, experts = scores.topk(top_k, dim=-1)
        weights = weights if gating == "softmax" else weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(hidden_states, dtype=torch.float32)
        for token, row in enumerate(hidden_states.float()):
            for weight, expert in zip(weights[token], experts[token]):
                hidden = torch.nn.functional.silu(w_gate[expert].float() @ row) * (w_up[expert].float() @ row)
                y[token] += weight * (w_down[expert].float() @ hidden)
        return y.to(hidden_states.dtype), experts, weights

    (module,) = stub_modules(monkeypatch, "triton_kernels.moe")
    module.fused_moe_forward = fused_moe_forward
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return calls


def test_unavailable_says_why_and_what_to_type(monkeypatch, tmp_path):
    stub_modules(monkeypatch, "triton_kernels")  # OpenAI's, without moe
    check = adapters.Tritonmoe().check(case())
    assert check.status.value == "unavailable"
    assert "triton_kernels" in check.reason
    assert check.reason.endswith(
        ": git clone https://github.com/bassrehab/triton-kernels tritonmoe && "
        "export TRITONMOE_TRITONMOE_PATH=$PWD/tritonmoe"
    )
    (tmp_path / "triton_kernels").mkdir()
    monkeypatch.setenv("TRITONMOE_TRITONMOE_PATH", str(tmp_path))
    assert adapters.Tritonmoe().search_path() == []
    (tmp_path / "triton_kernels" / "moe").mkdir()
    assert adapters.Tritonmoe().search_path() == [tmp_path.resolve()]


def test_another_api_is_unavailable(stub):
    sys.modules["triton_kernels.moe"].fused_moe_forward = lambda x, router, w1, w2, top_k: x
    check = adapters.Tritonmoe().check(case())
    assert check.status.value == "unavailable"
    assert "another fused_moe_forward" in check.reason


@pytest.mark.parametrize(("gating", "theirs"), [("softmax", "softmax"), ("sigmoid_renorm", "sigmoid")])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_layouts_and_flags(stub, gating, theirs, dtype):
    adapter, point = adapters.Tritonmoe(), case(gating=gating, dtype=dtype)
    assert adapter.check(point).status.value == "ok"
    assert adapter.host_sync
    assert error_of(adapter, point) < 0.01
    assert stub[-1] == ((8, 48, 64), (8, 48, 64), (8, 64, 48), 8, 2, theirs)


def test_the_kernels_are_tuned_for_each_batch_size(stub):
    module = sys.modules["triton_kernels.moe"]

    @triton.autotune(configs=[triton.Config({})], key=["N", "K"])
    @triton.jit
    def kernel(N, K):
        pass

    assert isinstance(kernel, Autotuner)
    module.kernel = kernel
    adapter, kept = adapters.Tritonmoe(), []
    for tokens in (5, 5, 6):
        point = case(tokens=tokens)
        adapter.build(point, Weights(point, "cpu"))
        kept.append(dict(kernel.cache))
        kernel.cache["N, K"] = tokens  # as if the forward had tuned it
    assert kept == [{}, {"N, K": 5}, {}]


@pytest.mark.parametrize("gating", ["softmax_renorm", "sigmoid"])
def test_unsupported(stub, gating):
    check = adapters.Tritonmoe().check(case(gating=gating))
    assert check.status.value == "unsupported"
    assert gating in check.reason
