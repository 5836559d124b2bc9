"""What tests of the adapters of vLLM share: a stub of the API that they call."""

import os
import types
from contextlib import contextmanager

import torch
from tiny_layer import silu_and_mul, stub_modules

from tritonmoe_bench.baselines import vllm
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.baselines.parts import vllm_tuning
from tritonmoe_bench.experiments.workload.reference import activate, quantize_fp8, route
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.formats.int4 import Int4, Int4Group32
from tritonmoe_bench.kernels.gating import Gating

FP8 = {"quant": "fp8_block", "hidden_dim": 128, "ffn_dim": 128}
TABLE = {1: {"BLOCK_SIZE_M": 16}, 64: {"BLOCK_SIZE_M": 64}}


def nothing_built(monkeypatch, tmp_path):
    """No .peers, no file of tuned tiles, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    monkeypatch.setenv("TRITONMOE_VLLM_TUNED", str(tmp_path / "tuned.json"))
    monkeypatch.setattr(vllm_tuning, "version", lambda: "0.22.1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    vllm_tuning._memory.clear()
    vllm._problem.cache_clear()
    yield
    vllm._problem.cache_clear()


def install(monkeypatch):
    """A STUB of the part of vLLM 0.22.1 that the adapter calls; it computes in PyTorch and notes the calls."""
    calls: list[tuple] = []

    def fused_topk(hidden_states, gating_output, topk, renormalize, indices_type=None, scoring_func="softmax"):
        calls.append(("fused_topk", topk, renormalize, scoring_func))
        scores = gating_output.float()
        scores = scores.softmax(-1) if scoring_func == "softmax" else scores.sigmoid()
        weights, experts = scores.topk(topk, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True) if renormalize else weights
        return weights, experts.int(), experts.int()

    def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, inplace=False, activation="silu",
                      apply_router_weight_on_input=False, quant_config=None):  # fmt: skip
        calls.append(("fused_experts", tuple(w1.shape), tuple(w2.shape), inplace, apply_router_weight_on_input,
                      layers.get_config()))  # fmt: skip
        assert w1.is_contiguous()
        assert w2.is_contiguous()
        rounded = lambda rows: rows  # noqa: E731
        biases = quant_config or {}
        if "w1_scale" in biases:
            kind = {"[128, 128]": Fp8Block, "[0, 128]": Int4, "[0, 32]": Int4Group32}[str(quant_config["block_shape"])]
            assert w1.dtype == w2.dtype == (torch.float8_e4m3fn if kind is Fp8Block else torch.uint8)
            rounded = quantize_fp8 if kind is Fp8Block else rounded
            w1, w2 = kind(w1, quant_config["w1_scale"]).unpack(), kind(w2, quant_config["w2_scale"]).unpack()
            assert os.environ["VLLM_USE_DEEP_GEMM"] == "0"
        y = torch.zeros_like(hidden_states, dtype=torch.float32)
        for token, row in enumerate(rounded(hidden_states).float()):
            for weight, expert in zip(topk_weights[token], topk_ids[token]):
                first, last = (weight, 1.0) if apply_router_weight_on_input else (1.0, weight)
                both, bias = w1[expert].float() @ row, biases.get("w1_bias")
                both = first * (both if bias is None else both + bias[expert])
                pairs = both.chunk(2) if activation == "silu" else (both[0::2], both[1::2])
                hidden = rounded(activate(*pairs, {"silu": "silu", "swigluoai": "gpt_oss"}[activation])[None])[0]
                out, bias = w2[expert].float() @ hidden, biases.get("w2_bias")
                y[token] += last * (out if bias is None else out + bias[expert])
        return y.to(hidden_states.dtype)

    def grouped_topk(scores, n_group, topk_group, topk, renormalize, scale, bias, scoring_func):
        calls.append(("grouped_topk", n_group, topk_group, topk, renormalize, scale, scoring_func))
        gating = Gating("sigmoid", renormalize, n_group, topk_group, True, scale)
        weights, experts = route(scores, topk, gating, bias)
        return weights, experts.int()

    def dsv3_router_gemm(hidden_states, router_weight, output_dtype):
        calls.append(("dsv3_router_gemm", output_dtype))
        return (hidden_states @ router_weight.T).to(output_dtype)

    names = ("vllm.model_executor.layers.fused_moe", "vllm._custom_ops", "vllm.platforms",
             "vllm.model_executor.layers.fused_moe.fused_moe", "vllm.model_executor.layers.fused_moe.config",
             "vllm.model_executor.layers.fused_moe.router.fused_topk_router",
             "vllm.model_executor.layers.fused_moe.activation")  # fmt: skip
    layers, ops, platforms, module, config, router, activations = stub_modules(monkeypatch, *names)
    activations.MoEActivation = types.SimpleNamespace(SWIGLUOAI="swigluoai")
    monkeypatch.setattr(vllm, "_silu_and_mul", silu_and_mul)
    layers.current = None

    @contextmanager
    def override_config(config):
        layers.current, before = config, layers.current
        yield
        layers.current = before

    layers.override_config, layers.get_config = override_config, lambda: layers.current
    module.fused_experts = fused_experts
    module.get_moe_configs = lambda E, N, dtype, block_n=0, block_k=0: (
        TABLE if (E, N, dtype, block_k) in ((8, 48, None, 0), (8, 128, "fp8_w8a8", 128)) else None
    )
    module.get_config_file_name = lambda E, N, dtype, block_shape=None: (
        f"E={E},N={N},device_name=STUB{f',dtype={dtype},block_shape={block_shape}' if dtype else ''}.json"
    )
    module.try_get_optimal_moe_config = lambda w1, w2, top_k, dtype, M, block_shape=None: {
        "BLOCK_SIZE_M": 16, "shape": tuple(w2), **({"dtype": dtype, "block_shape": block_shape} if dtype else {}),
        **({"BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "num_stages": 3} if dtype else {}),
    }  # fmt: skip
    config.fp8_w8a8_moe_quant_config = config.int4_w4a16_moe_quant_config = dict
    config.biased_moe_quant_config = lambda w1_bias, w2_bias: {"w1_bias": w1_bias, "w2_bias": w2_bias}
    router.fused_topk = fused_topk
    ops.grouped_topk, ops.dsv3_router_gemm = grouped_topk, dsv3_router_gemm
    platforms.current_platform = types.SimpleNamespace(is_cuda=lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return calls
