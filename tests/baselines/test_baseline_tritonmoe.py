"""The adapters of the paper's own code over a stub of the functions that they call."""

import sys
from itertools import pairwise

import pytest
import torch
import triton
from tiny_layer import case, error_of, stub_modules
from triton.runtime.autotuner import Autotuner

from tritonmoe_bench.baselines import tritonmoe as adapters
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments.workload.weights import Weights


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITONMOE_TRITONMOE_PATH", raising=False)
    monkeypatch.setattr(trees, "FOLDER", tmp_path / "peers")
    adapters._problem.cache_clear()
    yield
    adapters._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of triton_kernels.moe at commit 7f19abd0, by its signatures, in PyTorch; notes the calls."""
    calls: list[tuple] = []

    def moe_router(hidden_states, router_weight, top_k, gating="softmax", router_bias=None):
        logits = hidden_states.float() @ router_weight.float().T
        scores = logits.softmax(-1) if gating == "softmax" else logits.sigmoid()
        weights, experts = scores.topk(top_k, dim=-1)
        weights = weights if gating == "softmax" else weights / weights.sum(-1, keepdim=True)
        return experts, weights.to(hidden_states.dtype), logits

    def permute_tokens(hidden_states, top_k_indices, num_experts):
        slots = top_k_indices.flatten().argsort(stable=True)
        counts = top_k_indices.flatten().bincount(minlength=num_experts)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return hidden_states[slots // top_k_indices.shape[1]], offsets, slots, slots.argsort()

    def expert_ffn_triton(permuted_tokens, w_gate, w_up, w_down, expert_offsets, num_experts):
        calls.append((tuple(w_gate.shape), tuple(w_up.shape), tuple(w_down.shape), num_experts))
        rows, y = permuted_tokens.float(), torch.zeros_like(permuted_tokens)
        for expert, (first, last) in enumerate(pairwise(expert_offsets)):
            mine, gate, up, down = rows[first:last], w_gate[expert], w_up[expert], w_down[expert]
            hidden = torch.nn.functional.silu(mine @ gate.float().T) * (mine @ up.float().T)
            y[first:last] = (hidden @ down.float().T).to(y.dtype)
        return y

    def unpermute_tokens(expert_outputs, top_k_weights, restore_idx, num_tokens, top_k):
        y = expert_outputs[restore_idx].view(num_tokens, top_k, -1).float()
        return (y * top_k_weights.unsqueeze(-1).float()).sum(1).to(expert_outputs.dtype)

    def fused_moe_forward(hidden_states, router_weight, w_gate, w_up, w_down, num_experts, top_k, gating="softmax"):
        experts, weights, _ = moe_router(hidden_states, router_weight, top_k, gating)
        rows, offsets, _, restore = permute_tokens(hidden_states, experts, num_experts)
        y = expert_ffn_triton(rows, w_gate, w_up, w_down, offsets, num_experts)
        calls[-1] += (gating,)
        return unpermute_tokens(y, weights, restore, len(hidden_states), top_k), experts, weights

    (module,) = stub_modules(monkeypatch, "triton_kernels.moe")
    for function in (moe_router, permute_tokens, expert_ffn_triton, unpermute_tokens, fused_moe_forward):
        setattr(module, function.__name__, function)
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


def test_the_folder_that_make_checkouts_makes_is_found_with_its_commit(monkeypatch, tmp_path):
    made = tmp_path / "peers" / "tritonmoe"
    (made / "triton_kernels" / "moe").mkdir(parents=True)
    assert adapters.Tritonmoe().search_path() == []  # not finished
    (made / "BUILD.json").write_text('{"commit": "0123456789abcdef"}', encoding="utf-8")
    assert adapters.Tritonmoe().search_path() == adapters.TritonmoeUnfused().search_path() == [made]
    assert adapters.Tritonmoe().version() == "commit 0123456789ab"
    monkeypatch.setenv("TRITONMOE_TRITONMOE_PATH", str(tmp_path / "elsewhere"))
    assert adapters.Tritonmoe().search_path() == []


def test_another_api_is_unavailable(stub):
    sys.modules["triton_kernels.moe"].fused_moe_forward = lambda x, router, w1, w2, top_k: x
    check = adapters.Tritonmoe().check(case())
    assert check.status.value == "unavailable"
    assert "another fused_moe_forward" in check.reason


@pytest.mark.parametrize(("gating", "theirs"), [("softmax", "softmax"), ("sigmoid_renorm", "sigmoid")])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("system", [adapters.Tritonmoe, adapters.TritonmoeUnfused])
def test_layouts_and_flags(stub, gating, theirs, dtype, system):
    adapter, point = system(), case(gating=gating, dtype=dtype)
    assert adapter.check(point).status.value == "ok"
    assert adapter.host_sync
    assert error_of(adapter, point) < 0.01
    flags = (theirs,) if system is adapters.Tritonmoe else ()
    assert stub[-1] == ((8, 48, 64), (8, 48, 64), (8, 64, 48), 8, *flags)


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
