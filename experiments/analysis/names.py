"""What systems and models are called, in which order they stand, and which family a system belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..table.limits import LIMIT as LIMIT

FAST, TILED, INVARIANT, EIGHT_BITS = "fast", "fast_tiled", "fast_invariant", "fast_a8"
PAPER, UNFUSED = "paper_fused", "paper_unfused"
OWN_CODE, OWN_UNFUSED = "tritonmoe", "tritonmoe_unfused"
"""The paper's own code; names of its further paths begin as the first."""
GPU_SCHEDULE = "paper_fused_graph"
"""The tiles of `paper_fused` with the schedule built on the GPU, so that a CUDA graph can hold it."""
LOOP = "torch_loop"
MEGABLOCKS = ("megablocks_sparse", "megablocks_grouped_cublas", "megablocks_grouped_cutlass")
DYNAMIC, FIXED = "fastvariant_dynamic", "fastvariant_fixed"
"""Tile heights chosen on the GPU, and the start of the names of those with one height for all."""

MODEL_LABELS = {
    "mixtral": "Mixtral-8x7B",
    "qwen2_paper": "Qwen2-57B (paper)",
    "deepseek_v3": "DeepSeek-V3",
    "mixtral_8x22b": "Mixtral-8x22B",
    "qwen3_30b_a3b": "Qwen3-30B-A3B",
    "qwen3_235b_a22b": "Qwen3-235B-A22B",
    "qwen2_57b_a14b": "Qwen2-57B-A14B",
    "olmoe_1b_7b": "OLMoE-1B-7B",
    "gpt_oss_20b": "gpt-oss-20b",
    "gpt_oss_120b": "gpt-oss-120b",
    "kimi_k2": "Kimi-K2",
    "qwen3_next_80b_a3b": "Qwen3-Next-80B-A3B",
    "qwen3_5_35b_a3b": "Qwen3.5-35B-A3B",
    "glm_4_5": "GLM-4.5",
    "minimax_m2": "MiniMax-M2",
    "llama_4_scout": "Llama-4-Scout",
    "phi_3_5_moe": "Phi-3.5-MoE",
    "deepseek_v4_flash": "DeepSeek-V4-Flash",
}
"""Labels of the models, in the order of panels: the paper's first."""
SYSTEMS = {
    "stream": ("measured limit (stream)", "limit"),
    "fast": ("fast", "fast"),
    "fast_tiled": ("fast, tiled weights", "fast"),
    "fast_invariant": ("fast, batch-invariant", "fast"),
    "fast_a8": ("fast, 8-bit activations", "fast"),
    "paper_fused": ("paper fused", "paper"),
    "paper_fused_graph": ("paper fused + GPU schedule", "paper"),
    "paper_unfused": ("paper unfused", "paper"),
    "megablocks_sparse": ("Megablocks sparse", "megablocks"),
    "megablocks_grouped_cublas": ("Megablocks grouped cuBLAS", "megablocks"),
    "megablocks_grouped_cutlass": ("Megablocks grouped CUTLASS", "megablocks"),
    "vllm": ("vLLM", "serving"),
    "vllm_tuned": ("vLLM tuned", "serving"),
    "vllm_marlin": ("vLLM Marlin", "serving"),
    "humming": ("Humming in vLLM", "serving"),
    "humming_a8": ("Humming, 8-bit activations", "serving"),
    "sglang": ("SGLang", "serving"),
    "openai_triton_kernels": ("OpenAI triton_kernels", "serving"),
    "scattermoe": ("ScatterMoE", "research"),
    "sonicmoe": ("SonicMoE", "research"),
    "tritonmoe": ("TritonMoE (the paper's code)", "research"),
    "tritonmoe_unfused": ("TritonMoE unfused (the paper's code)", "research"),
    "cutlass_grouped": ("CUTLASS grouped", "library"),
    "cublas_grouped": ("cuBLAS grouped", "library"),
    "cublas_streams": ("cuBLAS on streams", "library"),
    "deep_gemm": ("DeepGEMM", "library"),
    "finegrained_fp8": ("finegrained-fp8", "library"),
    "flashinfer_mono": ("FlashInfer mono_moe", "library"),
    "flashinfer_cutlass": ("FlashInfer CUTLASS", "library"),
    "torch_grouped_mm": ("PyTorch grouped_mm", "pytorch"),
    "torch_grouped_mm_compiled": ("PyTorch grouped_mm compiled", "pytorch"),
    "torch_batched_mm": ("PyTorch batched_mm", "pytorch"),
    "torch_loop": ("PyTorch loop", "pytorch"),
    "tutel": ("Tutel", "training"),
    "fastmoe": ("FastMoE", "training"),
    "deepspeed_moe": ("DeepSpeed-MoE", "training"),
    "magma_vbatched": ("MAGMA vbatched", "library"),
}
"""Label and family of each listed system, in the order of legends: the limit, ours, the paper's, then the field."""

_families: dict[str, str] = {}


def learn(families: Mapping[str, str]) -> None:
    """Remembers the families of systems, by name, as their adapters give them; listed systems keep their own."""
    _families.update(families)


def label_of(system: str) -> str:
    """What figures and tables call a system: its own name where it is not listed."""
    return SYSTEMS[system][0] if system in SYSTEMS else system


def family_of(system: str) -> str:
    """The family of a system, listed or learned; else that of the listed system that its name begins with."""
    if system in SYSTEMS:
        return SYSTEMS[system][1]
    family = _families.get(system, system.split("_")[0])
    return SYSTEMS[family][1] if family in SYSTEMS else family


def in_order(names: Iterable[str]) -> list[str]:
    """Systems in the order of every figure: the listed ones, then the others by name."""
    listed = list(SYSTEMS)
    return sorted(set(names), key=lambda name: (listed.index(name) if name in SYSTEMS else len(listed), name))


def fixed_heights(names: Iterable[str]) -> list[str]:
    """The systems with one tile height for all, the lowest first."""
    return sorted({name for name in names if name.startswith(FIXED)}, key=lambda name: int(name.removeprefix(FIXED)))


def models_in_order(names: Iterable[str]) -> list[str]:
    """Models in the order of every figure: the listed ones, each before its shards, then the others by name."""
    listed = list(MODEL_LABELS)

    def key(name: str) -> tuple[int, str, str]:
        model, shard = _parts(name)
        return (listed.index(model) if model in MODEL_LABELS else len(listed), model, shard)

    return sorted(set(names), key=key)


def model_label(name: str) -> str:
    """`mixtral tp8`, a shard as experiments/workload/shards.py names it, is Mixtral-8x7B tp8."""
    model, shard = _parts(name)
    return " ".join(filter(None, (MODEL_LABELS.get(model, model), shard)))


def _parts(name: str) -> tuple[str, str]:
    model, _, shard = name.partition(" ")
    return model, shard
