"""The made-up machine behind tests/make_results.py: its systems, their cases, and a formula for each latency."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import yaml

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import load_model

TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
LIMIT_TB_S = 4.5
HOST_SYNC = "the host waits for the expert counts, which a CUDA graph cannot hold (synthetic)"

SYSTEMS = {
    # name: (share of the limit's bandwidth, us of a graph replay or None if it syncs, us of an eager call,
    #        us per active expert, factor per doubling of tokens over 64, version)
    "stream": (1.0, 2.0, 8.0, 0.0, 1.0, "0.1.0"),
    "torch_loop": (0.70, None, 250.0, 55.0, 1.05, "0.0.0+synthetic"),
    "torch_grouped_mm": (0.72, 45.0, 210.0, 0.1, 1.08, "0.0.0+synthetic"),
    "torch_grouped_mm_compiled": (0.74, 30.0, 120.0, 0.1, 1.06, "0.0.0+synthetic"),
    "paper_unfused": (0.70, None, 190.0, 0.3, 1.16, "0.1.0"),
    "paper_fused": (0.80, None, 150.0, 0.3, 1.12, "0.1.0"),
    "paper_fused_graph": (0.80, 24.0, 110.0, 0.1, 1.12, "0.1.0"),
    "fast": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "megablocks_sparse": (0.66, None, 420.0, 0.4, 1.07, "0.10.0"),
    "megablocks_grouped_cublas": (0.60, None, 260.0, 14.0, 1.04, "0.10.0"),
    "megablocks_grouped_cutlass": (0.74, None, 300.0, 0.2, 1.05, "0.10.0"),
    "vllm": (0.91, 26.0, 90.0, 0.1, 1.05, "0.0.0+synthetic"),
}
VARIANTS = {
    # as SYSTEMS: ablations, which only the studies that name them have
    "fastvariant_output_centric": (0.95, 14.0, 90.0, 0.0, 1.0, "0.1.0"),
    "fastvariant_expert_centric": (0.90, 21.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_gather": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_permute": (0.895, 23.0, 105.0, 0.05, 1.05, "0.1.0"),
    "fastvariant_dynamic": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_fixed16": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_fixed64": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
    "fastvariant_fixed128": (0.90, 20.0, 100.0, 0.05, 1.04, "0.1.0"),
}
HEADLINE_SYSTEMS = (
    "stream",
    "torch_grouped_mm",
    "paper_fused_graph",
    "fast",
    "megablocks_sparse",
    "megablocks_grouped_cutlass",
    "vllm",
)
QUANT_SYSTEMS = ("stream", "fast", "vllm")
GRANULAR_SYSTEMS = ("stream", "fast", "torch_grouped_mm", "vllm")
NATIVE_SYSTEMS = ("stream", "fast", "torch_grouped_mm", "vllm")
HEADLINE_MODELS = ("mixtral", "qwen2_paper", "deepseek_v3", "qwen3_30b_a3b")
COUNTED_SYSTEMS = {
    # name: (bytes over the compulsory ones at few tokens, growth per doubling of tokens over 128)
    "stream": (1.0, 1.0),
    "paper_unfused": (1.09, 1.30),
    "paper_fused": (1.03, 1.31),
    "paper_fused_graph": (1.03, 1.31),
    "fast": (1.0, 1.01),
    "torch_grouped_mm": (1.07, 1.10),
    "megablocks_sparse": (1.12, 1.15),
    "megablocks_grouped_cutlass": (1.05, 1.12),
    "vllm": (1.01, 1.06),
}
EXPERT_SYSTEMS = tuple(name for name in SYSTEMS if name not in ("torch_loop", "torch_grouped_mm_compiled", "vllm"))
DECODE_SYSTEMS = ("stream", "fastvariant_output_centric", "fastvariant_expert_centric", "fast")
FUSION_SYSTEMS = ("stream", "fastvariant_gather", "fastvariant_permute", "fast")
HEIGHT_SYSTEMS = ("stream", "fastvariant_dynamic", *(name for name in VARIANTS if "_fixed" in name))
ENDTOEND_SYSTEMS = ("torch_loop", "torch_grouped_mm", "fast")
SKEW_SYSTEMS = tuple(name for name in EXPERT_SYSTEMS if name != "paper_unfused")


def throughput_cases() -> list[Case]:
    models = {"bf16": ("mixtral", "qwen2_paper", "deepseek_v3", "mixtral_8x22b", "qwen3_30b_a3b"),
              "fp16": ("mixtral", "qwen2_paper", "deepseek_v3")}  # fmt: skip
    return [model(name, tokens, dtype) for dtype, names in models.items() for name in names for tokens in TOKENS]


def headline_cases() -> list[Case]:
    return [
        replace(model(name, tokens), skew=skew)
        for name in HEADLINE_MODELS
        for tokens in (1, 8, 32, 128, 512)
        for skew in (0.0, 1.2)
    ]


def quant_cases() -> list[Case]:
    return [
        replace(model("deepseek_v3", tokens), skew=skew, quant=quant)
        for tokens in (1, 32, 512)
        for skew in (0.0, 1.2)
        for quant in ("fp8_block", "none")
    ]


def native_cases() -> list[Case]:
    return [
        native(name, tokens) for name in ("qwen3_next_80b_a3b", "mixtral", "gpt_oss_20b") for tokens in (1, 32, 512)
    ]


def native(name: str, tokens: int) -> Case:
    own = load_model(name)
    return replace(model(name, tokens), gating=own.native_gating, layer="native", facts=own.facts())


def granular_cases() -> list[Case]:
    """Two shapes, one of them packed too."""
    plain = [
        replace(model(name, tokens), skew=skew)
        for name in ("qwen3_30b_a3b", "qwen3_5_35b_a3b")
        for tokens in (1, 4, 16, 64)
        for skew in (0.0, 1.2, 2.0)
    ]
    return [*plain, *(replace(case, quant="fp8_block") for case in plain if case.model == "qwen3_5_35b_a3b")]


def skew_cases() -> list[Case]:
    return [
        replace(model("qwen2_paper", tokens), num_experts=experts, top_k=4, skew=skew)
        for experts in (8, 16, 32, 64, 128, 256)
        for tokens in (32, 128, 512)
        for skew in (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)
    ]


def expert_cases() -> list[Case]:
    return [
        replace(model("qwen2_paper", tokens), num_experts=16 * k, top_k=k, ffn_dim=10240 // k)
        for k in (1, 2, 4, 8, 16)
        for tokens in (32, 128, 512)
    ]


def decode_cases() -> list[Case]:
    return [model(name, tokens) for name in HEADLINE_MODELS for tokens in (1, 2, 4, 8, 16, 32, 64)]


def fusion_cases() -> list[Case]:
    return [model(name, tokens) for name in HEADLINE_MODELS for tokens in (1, 8, 32, 128, 512)]


def height_cases() -> list[Case]:
    return [
        replace(model(name, tokens), skew=skew)
        for name in HEADLINE_MODELS
        for tokens in (32, 128, 512)
        for skew in (0.0, 0.6, 1.2, 2.0)
    ]


def energy_cases() -> list[Case]:
    return [model(name, tokens) for name in ("mixtral", "deepseek_v3") for tokens in (1, 32, 512)]


def endtoend_cases() -> list[Case]:
    return [model(name, tokens) for name in ("qwen3_30b_a3b", "olmoe_1b_7b") for tokens in (1, 8, 32)]


def counted_cases() -> list[Case]:
    small = [
        model(name, tokens) for name in ("mixtral", "qwen2_paper", "deepseek_v3") for tokens in (1, 8, 32, 128, 512)
    ]
    return [*small, model("mixtral", 4096), model("deepseek_v3", 4096)]


def model(name: str, tokens: int, dtype: str = "bf16") -> Case:
    shape = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    sizes = {key: shape[key] for key in ("num_experts", "top_k", "hidden_dim", "ffn_dim")}
    return Case(model=name, tokens=tokens, dtype=dtype, **sizes)


@cache
def routing(case: Case) -> tuple[int, int]:
    """(active experts, largest load) of a Zipf draw without replacement."""
    rng = np.random.default_rng([case.num_experts, case.top_k, case.tokens])
    log_p = -case.skew * np.log(np.arange(1, case.num_experts + 1))
    logits = log_p + rng.gumbel(size=(case.tokens, case.num_experts))
    counts = np.bincount(np.argsort(-logits, axis=1)[:, : case.top_k].ravel(), minlength=case.num_experts)
    return int((counts > 0).sum()), int(counts.max())


def latency(implementation: str, case: Case, active: int, load: int, launch: str) -> float:
    """us of a made-up system: bytes at a share of the limit, a fixed cost, a cost per expert, growth with load."""
    share, graph_us, eager_us, expert_us, growth, _ = system(implementation)
    stream_us = active * case.expert_bytes / LIMIT_TB_S / 1e6
    fixed = eager_us if launch == "eager" or graph_us is None else graph_us
    grown = growth ** max(0.0, np.log2(case.tokens / 64))
    imbalance = 1.0
    if implementation.startswith("paper"):
        imbalance = 1 + 0.06 * case.skew * np.log2(case.num_experts / 8) * min(1.0, load / 64)
    if implementation == "fastvariant_output_centric":
        imbalance = (case.slots / active) ** 0.6
    elif "_fixed" in implementation:
        height = int(implementation.removeprefix("fastvariant_fixed"))
        imbalance = 1 + 0.02 * np.log2(height) * (active * height > 2 * case.slots) + 0.03 * (load // height)
    p50 = stream_us / share * grown * imbalance + fixed + expert_us * active
    return round(float(p50 * (1 + 0.01 * noise(case, implementation, launch))), 3)


def system(name: str) -> tuple:
    return VARIANTS[name] if name in VARIANTS else SYSTEMS[name]


def error(case: Case, implementation: str) -> float | None:
    """Relative error of a made-up system: what the dtype leaves, and a little by system and case; of a limit, none."""
    if implementation == "stream":
        return None
    own = {"torch": 1.0, "fastvariant_output_centric": 0.71, "torch_loop": 1.0}.get(implementation, 0.95)
    return {"bf16": 0.0043, "fp16": 0.00054}[case.dtype] * own * (1 + 0.03 * noise(case, implementation, "error"))


def trouble(study: str, case: Case, implementation: str, launch: str) -> tuple[str, str]:
    """(status, reason): each status of the schema occurs."""
    if implementation == "megablocks_grouped_cutlass" and study == "skew":
        return "unavailable", "grouped_gemm's CUTLASS build is not installed: make megablocks (synthetic)"
    if implementation.startswith("megablocks_grouped") and case.dtype == "fp16":
        return "unsupported", "grouped_gemm multiplies bf16 only (synthetic)"
    if implementation.startswith("torch_grouped_mm") and case.dtype == "fp16":
        return "unsupported", "grouped_mm takes bf16 only (synthetic)"
    if launch == "graph" and system(implementation)[1] is None:
        return "unsupported", HOST_SYNC
    if implementation == "megablocks_sparse" and case.model == "deepseek_v3" and case.tokens == 512:
        return "oom", "CUDA out of memory: 24.00 GiB asked for (synthetic)"
    if implementation.startswith("megablocks") and case.num_experts == 256 and case.skew == 2.0 and case.tokens == 512:
        return "error", "CUDA error: an illegal memory access was encountered (synthetic)"
    if implementation == "megablocks_grouped_cublas" and case.model == "qwen3_30b_a3b" and case.tokens == 4:
        return "error", "CUBLAS_STATUS_EXECUTION_FAILED (synthetic)"
    if implementation == "torch_grouped_mm_compiled" and case.model == "mixtral_8x22b" and case.tokens == 16:
        return "incorrect", "rel_error 0.31 exceeds 2 x 0.0043 (synthetic)"
    if implementation == "torch_loop" and case.model == "deepseek_v3" and case.tokens == 256:
        return "timeout", "no result within 300 s (synthetic)"
    return "ok", ""


@cache
def noise(*key: object) -> float:
    """Standard normal, the same for the same key everywhere."""
    named = [part.case_hash if isinstance(part, Case) else part for part in key]
    return float(np.random.default_rng(zlib.crc32(repr(named).encode())).standard_normal())
