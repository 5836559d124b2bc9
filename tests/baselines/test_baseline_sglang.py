"""The adapter of SGLang over a stub of the API that it calls, and, where .peers is, over SGLang's own Python code."""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_layer import NATIVE, case, error_of, native, silu_and_mul, stub_modules

from tritonmoe_bench.baselines import sglang as adapters
from tritonmoe_bench.baselines.install import sglang_tree, trees
from tritonmoe_bench.experiments.workload.reference import activate, quantize_fp8, route
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.gating import Gating

ROOT = Path(__file__).resolve().parents[2]
PROCESS = Path(__file__).with_name("sglang_process.py")
TRITON_UTILS = "sglang.srt.layers.moe.moe_runner.triton_utils"
MODULES = (f"{TRITON_UTILS}.fused_moe", f"{TRITON_UTILS}.fused_moe_triton_config", "sglang.srt.arg_groups.arg_utils",
           "sglang.srt.runtime_context", "sglang.kernels.ops.moe.moe_fused_gate", "sglang.kernels.jit.utils",
           "sglang.kernels.ops.activation.activation", "sglang.kernels.ops.gemm.dsv3_router_gemm",
           "sglang.kernels.ops.moe.fused_moe_triton_kernels", "sglang.kernels.ops.quantization.fp8_kernel",
           "sglang.kernels.ops.quantization.per_token_group_quant")  # fmt: skip


def forget() -> None:
    for function in (
        adapters._problem,
        adapters._activation,
        adapters._quantization,
        adapters._router_gemm,
        sglang_tree.one_gpu,
    ):
        function.cache_clear()


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch, tmp_path):
    """No .peers, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    forget()
    yield
    forget()


@dataclass(frozen=True)
class NS:
    path: str


@dataclass
class MoeRunnerConfig:
    num_experts: int
    num_local_experts: int
    top_k: int
    hidden_size: int
    intermediate_size_per_partition: int
    inplace: bool
    apply_router_weight_on_input: bool = False
    gemm1_alpha: float | None = None
    gemm1_clamp_limit: float | None = None
    gate_up_interleaved: bool = True


class Stub:
    """A STUB of the part of SGLang 0.5.17 that the adapter calls; it computes in PyTorch and notes the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.settings: object = None
        self.compiler = True

    def fused_experts(self, x, w1, w2, topk_output, runner, b1=None, b2=None, use_fp8_w8a8=False, w1_scale=None,
                      w2_scale=None, block_shape=None):  # fmt: skip
        weights, experts, _ = topk_output
        self.calls.append(("fused_experts", tuple(w1.shape), tuple(w2.shape), runner))
        rounded = quantize_fp8 if use_fp8_w8a8 else lambda rows: rows
        if use_fp8_w8a8:
            assert block_shape == [128, 128]
            assert self.quantize in (None, "SGLang's in Triton")
            w1, w2 = Fp8Block(w1, w1_scale).unpack(), Fp8Block(w2, w2_scale).unpack()
        assert w1.is_contiguous()
        assert w2.is_contiguous()
        assert self.fused_moe.get_tp_group().world_size == 1
        y = torch.zeros_like(x, dtype=torch.float32)
        for token, row in enumerate(rounded(x).float()):
            for weight, expert in zip(weights[token], experts[token]):
                first, last = (weight, 1.0) if runner.apply_router_weight_on_input else (1.0, weight)
                both = first * (w1[expert].float() @ row + (0 if b1 is None else b1[expert]))
                clamped = (runner.gemm1_alpha, runner.gemm1_clamp_limit, runner.gate_up_interleaved)
                assert clamped in ((None, None, True), (1.702, 7.0, False))
                hidden = rounded(activate(*both.chunk(2), "gpt_oss" if runner.gemm1_alpha else "silu")[None])[0]
                y[token] += last * (w2[expert].float() @ hidden + (0 if b2 is None else b2[expert]))
        return y.to(x.dtype)

    def moe_fused_gate(self, scores, bias, topk, scoring_func, renormalize, routed_scaling_factor,
                       apply_routed_scaling_factor_on_output, num_expert_group, topk_group):  # fmt: skip
        self.calls.append(("gate", topk, scoring_func, renormalize, num_expert_group, topk_group))
        assert bias.dtype == torch.float32
        assert bias.shape == (scores.shape[1],)
        scale = routed_scaling_factor if apply_routed_scaling_factor_on_output else 1.0
        gating = Gating(scoring_func, renormalize, num_expert_group, topk_group, bool(bias.any()), scale)
        weights, experts = route(scores, topk, gating, bias if bias.any() else None)
        return weights, experts.int()

    def activation_module(self, dtype):
        if not self.compiler:
            raise FileNotFoundError("nvcc")

    def dsv3_router_gemm_module(self, num_experts, hidden_dim, use_pdl, out_float):
        if not self.compiler:
            raise FileNotFoundError("nvcc")

    def dsv3_router_gemm(self, x, router, out_dtype):
        self.calls.append(("dsv3_router_gemm", out_dtype))
        return x.to(out_dtype) @ router.to(out_dtype).T

    def per_token_group_module(self, *arguments):
        assert arguments[:3] == (torch.bfloat16, torch.float8_e4m3fn, 128)
        if not self.compiler:
            raise FileNotFoundError("nvcc")

    @property
    def quantize(self):
        return getattr(self.kernel_module, "sglang_per_token_group_quant_fp8", None)

    def try_get_optimal_moe_config(self, w1, w2, top_k, dtype, tokens, block_shape, return_down_config):
        kind = {"dtype": dtype, "block_shape": block_shape} if dtype else {}
        return {"BLOCK_SIZE_M": 16, "shape": tuple(w2), **kind}, ({"BLOCK_SIZE_M": 16, "USE_TMA": True}, 16)


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    sgl_kernel, sglang, *_ = stub_modules(monkeypatch, "sgl_kernel", "sglang", *MODULES)
    runner, kernels = sglang.srt.layers.moe.moe_runner, sglang.kernels
    made.fused_moe = runner.triton_utils.fused_moe
    made.fused_moe.fused_experts = made.fused_experts
    made.fused_moe.silu_and_mul = silu_and_mul
    sgl_kernel.silu_and_mul = "compiled"
    tables = runner.triton_utils.fused_moe_triton_config
    tables.try_get_optimal_moe_config = made.try_get_optimal_moe_config
    tables.get_moe_configs = lambda E, N, dtype, block_n, block_k: {1: {}, 64: {}} if (E, N) == (8, 48) else None
    tables.get_config_file_name = lambda E, N, dtype, block_shape: f"E={E},N={N},device_name=STUB.json"
    runner.MoeRunnerConfig = MoeRunnerConfig
    sglang.srt.arg_groups.arg_utils.NS = NS
    context = types.SimpleNamespace(set_server_args=lambda settings: setattr(made, "settings", settings))
    sglang.srt.runtime_context.get_context = lambda: context
    kernels.ops.moe.moe_fused_gate.moe_fused_gate = made.moe_fused_gate
    kernels.jit.utils.is_arch_support_pdl = lambda: True
    kernels.ops.activation.activation.activation_module = made.activation_module
    gemm = kernels.ops.gemm.dsv3_router_gemm
    gemm.dsv3_router_gemm, gemm.dsv3_router_gemm_module = made.dsv3_router_gemm, made.dsv3_router_gemm_module
    made.kernel_module = kernels.ops.moe.fused_moe_triton_kernels
    kernels.ops.quantization.fp8_kernel._per_token_group_quant_8bit_raw = "SGLang's in Triton"
    kernels.ops.quantization.per_token_group_quant._jit_module = made.per_token_group_module
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return made


def test_unavailable_says_why_and_what_to_type(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = adapters.Sglang().check(case())
    assert check.status.value == "unavailable"
    assert check.reason == "SGLang's kernels need an NVIDIA GPU: pip install sglang==0.5.17"
    forget()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setitem(sys.modules, "sglang", None)
    check = adapters.Sglang().check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": pip install sglang==0.5.17")
    assert "sglang" in check.reason.split(": pip")[0]
    assert adapters.Sglang().search_path() == []


@pytest.mark.parametrize("compiler", [True, False])
def test_fp8_block_weights_run_as_they_are(stub, compiler):
    stub.compiler = compiler
    adapter, point = adapters.Sglang(), case(quant="fp8_block", hidden_dim=128, ffn_dim=128)
    assert adapter.answer(point).status.value == "ok"
    assert (adapter.activations(point), adapter.activations(case())) == ("a8", "a16")
    assert 0.008 < error_of(adapter, point) < 0.06
    assert "dtype=fp8_w8a8 block_shape=[128, 128]" in adapter.config(point)
    assert f"quantization={'jit' if compiler else 'triton (no jit: FileNotFoundError: nvcc)'}" in adapter.config(point)
    assert stub.quantize == (None if compiler else "SGLang's in Triton")


def test_a_tree_for_another_gpu_is_unavailable(stub):
    folder = trees.FOLDER / "sglang"
    (folder / "sglang").mkdir(parents=True)
    (folder / "BUILD.json").write_text(
        json.dumps({"sglang": "0.5.17", "sglang_kernel": "0.4.5", "arch": "8.0"}), encoding="utf-8"
    )
    check = adapters.Sglang().check(case())
    assert check.status.value == "unavailable"
    assert "made for compute capability 8.0, this GPU has 9.0" in check.reason
    assert adapters.Sglang().search_path() == [folder]
    assert adapters.Sglang().version() == "0.5.17 (sglang-kernel 0.4.5)"


@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid", "sigmoid_renorm"])
def test_layouts_and_flags(stub, gating):
    adapter, point = adapters.Sglang(), case(gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert stub.calls[-2] == ("gate", 2, point.gate.scoring, point.gate.renormalize, 1, 1)
    runner = MoeRunnerConfig(8, 8, 2, 64, 48, inplace=False)
    assert stub.calls[-1] == ("fused_experts", (8, 96, 64), (8, 64, 48), runner)
    assert adapter.config(point) == (
        "BLOCK_SIZE_M=16 shape=(8, 64, 48) down: BLOCK_SIZE_M=16 USE_TMA=True (E=8,N=48,device_name=STUB.json at M=1) "
        "router_gemm=torch silu_and_mul=jit"
    )
    assert stub.fused_moe.silu_and_mul is silu_and_mul


@pytest.mark.parametrize("facts", NATIVE, ids=str)
def test_native_layers(stub, facts):
    adapter, point = adapters.Sglang(), native(facts)
    assert adapter.answer(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01


@pytest.mark.parametrize(
    ("gating", "groups", "top_groups"), [("deepseek_v3", 8, 4), ("kimi_k2", 1, 1)]
)  # fmt: skip
def test_native_gating_of_deepseek_and_kimi(stub, gating, groups, top_groups):
    adapter, point = adapters.Sglang(), case(num_experts=32, top_k=4, gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert stub.calls[-2] == ("gate", 4, "sigmoid", True, groups, top_groups)
    assert "(default heuristic)" in adapter.config(point)


@pytest.mark.parametrize(("tokens", "dtype", "own"), [(16, "bf16", True), (17, "bf16", False), (3, "fp16", False)])
def test_router_gemm_of_sglang_where_it_serves(stub, tokens, dtype, own):
    adapter = adapters.Sglang()
    point = case(num_experts=256, hidden_dim=1024, ffn_dim=8, tokens=tokens, dtype=dtype)
    assert error_of(adapter, point) < 0.01
    assert (("dsv3_router_gemm", torch.float32) in stub.calls) is own
    assert ("router_gemm=jit" in adapter.config(point)) is own


def test_without_a_compiler_the_shipped_kernels_serve_and_the_row_says_so(stub):
    stub.compiler = False
    adapter, point = adapters.Sglang(), case(num_experts=256, hidden_dim=1024, ffn_dim=8, tokens=2)
    assert error_of(adapter, point) < 0.01
    assert stub.fused_moe.silu_and_mul == "compiled"
    assert not any(call[0] == "dsv3_router_gemm" for call in stub.calls)
    assert "router_gemm=torch (no jit: FileNotFoundError: nvcc)" in adapter.config(point)
    assert adapter.config(point).endswith("silu_and_mul=sgl_kernel (no jit: FileNotFoundError: nvcc)")


def test_settings_are_what_sglang_reads_at_its_defaults(stub):
    from typing import get_args, get_type_hints

    sglang_tree.one_gpu()
    hints = get_type_hints(type(stub.settings), include_extras=True)
    read = {name: get_args(hint) for name, hint in hints.items()}
    assert read == {name: (bool, NS(path)) for name, path in sglang_tree.SETTINGS.items()}
    assert not any(vars(stub.settings).values())


# SGLang's own Python code, where the tree is there.

PEERS = ROOT / ".peers" / "sglang"


@pytest.mark.slow
@pytest.mark.skipif(
    not (PEERS / "sglang").is_dir() or sys.version_info[:2] != (3, 12),
    reason="no .peers/sglang (python baselines/builds/offline/prune_sglang.py), or not the Python 3.12 that it is for",
)
def test_over_sglangs_own_python_code():
    command = [sys.executable, str(PROCESS), str(PEERS)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 8
    for result in results:
        assert result["error"] < 0.008
        assert result["unchanged"]
        assert len(result["launches"]) == 4
        assert result["config"].endswith("silu_and_mul=sgl_kernel (no jit: RuntimeError: no nvcc in this test)")
    assert results[4]["routed"][-1] == {"groups": 8, "top_groups": 4, "scale": 2.5, "biased": True}
    assert "router_gemm=torch (no jit: RuntimeError: no nvcc in this test)" in results[6]["config"]
    assert "(E=8,N=14336,device_name=NVIDIA_H200.json at M=32)" in results[-1]["config"]
    assert results[-1]["launches"][-1]["BLOCK_SIZE_N"] == 128
