"""The adapter of OpenAI's triton_kernels over a stub of the API that it calls, and its activation as a kernel."""

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tiny_layer import NATIVE, case, error_of, native, stub_modules

from tritonmoe_bench.baselines import openai_triton_kernels as adapters
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.experiments.workload.reference import activate
from tritonmoe_bench.experiments.workload.weights import Weights

triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch, tmp_path):
    """No .peers, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    adapters._problem.cache_clear()
    yield
    adapters._problem.cache_clear()


@dataclass(frozen=True)
class FnSpecs:
    name: str
    fn: object
    fn_arg_names: tuple
    fn_arg_do_not_specialize: tuple = ()


@dataclass(frozen=True)
class FusedActivation:
    specs: FnSpecs
    fn_args: tuple
    reduction_n: int


@pytest.fixture
def stub(monkeypatch):
    """A STUB of the part of triton_kernels 3.5.1 that the adapter calls, in PyTorch; it notes the calls."""
    calls: list[tuple] = []
    module, routing_module, swiglu, flags = stub_modules(
        monkeypatch, "triton_kernels.matmul_ogs", "triton_kernels.routing", "triton_kernels.swiglu",
        "triton_kernels.matmul_ogs_details.opt_flags",
    )  # fmt: skip
    swiglu.swiglu_fn = "its own"
    flags.reset_opt_flags_constraints = lambda: None

    def routing(logits, n_expts_act, sm_first=False):
        calls.append(("routing", n_expts_act, sm_first))
        scores = logits.float().softmax(-1) if sm_first else logits.float()
        values, experts = scores.topk(n_expts_act, dim=-1)
        values = values if sm_first else values.softmax(-1)
        order = experts.flatten().argsort(stable=True)
        data = SimpleNamespace(experts=experts.flatten()[order], gate_scal=values.flatten()[order], k=n_expts_act)
        return data, SimpleNamespace(slots=order), SimpleNamespace(slots=order)

    def matmul_ogs(x, w, bias, routing_data, gather_indx=None, scatter_indx=None, precision_config=None, gammas=None,
                   fused_activation=None):  # fmt: skip
        calls.append(("matmul_ogs", tuple(w.shape), w.stride(1), bias is not None, gather_indx is not None))
        module.make_opt_flags(len(calls))
        rows = x[gather_indx.slots // routing_data.k] if gather_indx else x
        out = torch.stack([row.float() @ w[e].float() for row, e in zip(rows, routing_data.experts)])
        if bias is not None:
            assert bias.dtype == torch.float32
            out += bias[routing_data.experts]
        if fused_activation:
            specs, values = fused_activation.specs, fused_activation.fn_args
            own = {"silu_mul": ((), ()), "swiglu": (("alpha", "limit"), (1.702, 7.0))}
            assert (specs.fn_arg_names, values) == own[specs.name]
            assert fused_activation.reduction_n == 2
            out = activate(out[:, 0::2], out[:, 1::2], "silu" if specs.name == "silu_mul" else "gpt_oss")
        if gammas is not None:
            out *= gammas[:, None]
        if scatter_indx:
            y = torch.zeros(len(out) // routing_data.k, out.shape[1])
            out = y.index_add_(0, scatter_indx.slots // routing_data.k, out)
        return out.to(x.dtype)

    def make_opt_flags(number):
        return SimpleNamespace(block_m=16, block_n=256, block_k=64, num_warps=4, num_stages=number, split_k=1,
                               is_persistent=True)  # fmt: skip

    module.matmul_ogs, module.make_opt_flags = matmul_ogs, make_opt_flags
    module.FnSpecs, module.FusedActivation, module.PrecisionConfig = FnSpecs, FusedActivation, SimpleNamespace
    routing_module.routing = routing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return calls


def test_unavailable_says_why_and_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_kernels", None)
    check = adapters.OpenaiTritonKernels().check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": python baselines/builds/offline/prune_vllm.py")
    assert "triton_kernels" in check.reason


def test_another_package_of_that_name_is_not_it(monkeypatch):
    stub_modules(monkeypatch, "triton_kernels")
    assert adapters.OpenaiTritonKernels().check(case()).status.value == "unavailable"


def test_where_it_is_found(monkeypatch, tmp_path):
    adapter = adapters.OpenaiTritonKernels()
    (trees.FOLDER / "triton_kernels" / "triton_kernels").mkdir(parents=True)
    (trees.FOLDER / "triton_kernels" / "BUILD.json").write_text(
        json.dumps({"vllm": "0.22.1", "triton_kernels": "3.5.1", "arch": "9.0"}), encoding="utf-8"
    )
    assert adapter.search_path() == [trees.FOLDER / "triton_kernels"]
    assert adapter.version() == "3.5.1"
    (trees.FOLDER / "triton_kernels" / "BUILD.json").unlink()
    (tmp_path / "site" / "vllm" / "third_party" / "triton_kernels").mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert adapter.search_path() == [tmp_path / "site" / "vllm" / "third_party"]


@pytest.mark.parametrize(("gating", "softmax_first"), [("softmax", True), ("softmax_renorm", False)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_layouts_and_flags(stub, gating, softmax_first, dtype):
    adapter, point = adapters.OpenaiTritonKernels(), case(gating=gating, dtype=dtype)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert stub[-3:] == [
        ("routing", 2, softmax_first),
        ("matmul_ogs", (8, 64, 96), 1, False, True),
        ("matmul_ogs", (8, 48, 64), 1, False, False),
    ]
    words = "block_m=16,block_n=256,block_k=64,num_warps=4,num_stages={},split_k=1,is_persistent=1"
    assert adapter.config(point) == f"gate_up:{words.format(2)} down:{words.format(3)}"
    assert adapter.config(case(tokens=6)) == ""


def test_weights_are_interleaved_once_and_dropped_with_their_set(stub):
    adapter, point = adapters.OpenaiTritonKernels(), case()
    weights = Weights(point, "cpu")
    (pairs, _), _ = adapter._operands(weights)
    gate, up, _ = weights.expert(3)
    assert torch.equal(pairs[3, :, 0::2], gate.T)
    assert torch.equal(pairs[3, :, 1::2], up.T)
    assert adapter._operands(weights)[0][0] is pairs
    del weights
    assert len(adapter._operands) == 0


@pytest.mark.parametrize("facts", [facts for facts in NATIVE if "weights_on_input" not in facts], ids=str)
def test_native_layers(stub, facts):
    adapter, point = adapters.OpenaiTritonKernels(), native(facts)
    assert adapter.answer(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01


def test_weights_on_the_input_are_not_its_own(stub):
    check = adapters.OpenaiTritonKernels().answer(native({"weights_on_input": True}))
    assert check.reason == "layer=native: t needs routing weights on the experts' input"


@pytest.mark.parametrize(("fields", "word"), [({"gating": "sigmoid"}, "softmax"), ({"top_k": 3}, "power of two")])
def test_unsupported(stub, fields, word):
    check = adapters.OpenaiTritonKernels().check(case(**fields))
    assert check.status.value == "unsupported"
    assert word in check.reason


def test_activation(device):
    import triton.language as tl

    from tritonmoe_bench.baselines.parts.silu_mul import silu_mul

    @triton.jit
    def kernel(source, target, activation: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
        rows, columns = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
        out = activation(tl.load(source + rows * N + columns))
        half = tl.arange(0, N // 2)[None, :]
        tl.store(target + rows * (N // 2) + half, out)

    pairs = 4 * torch.randn(16, 64, device=device)
    out = torch.empty(16, 32, device=device)
    kernel[(1,)](pairs, out, silu_mul, 16, 64)
    torch.testing.assert_close(out, torch.nn.functional.silu(pairs[:, 0::2]) * pairs[:, 1::2])
