"""How each system looks, in every figure: its place in the order, label, colour, marker and line style.

A family shares a hue; its members differ in luminance, marker and line style too, so that they read in greyscale. A
system that is not listed gets a look from its name, always the same one, and stands after the listed ones.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib import rcParams

FONT_PT = 7.0
INK = "#222222"
GREY = "#8c8c8c"
BAND = "#e9e3d0"
MISSING = "#d9d9d9"


Line = Any
"""A line style as matplotlib takes it: a name, or (offset, on and off lengths)."""


@dataclass(frozen=True)
class Look:
    """family: systems of one hue; marker: as matplotlib takes it."""

    label: str
    family: str
    color: str
    marker: str
    linestyle: Line = "-"


DASH, DOT, DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))

SYSTEMS: dict[str, Look] = {
    "stream": Look("measured limit (stream)", "limit", "#000000", "None", DOT),
    "fast": Look("fast", "fast", "#c1002f", "*"),
    "paper_fused": Look("paper fused", "paper", "#e66100", "o"),
    "paper_fused_graph": Look("paper fused + GPU schedule", "paper", "#8f2d00", "s"),
    "paper_unfused": Look("paper unfused", "paper", "#f2a65a", "o", DASH),
    "megablocks_sparse": Look("Megablocks sparse", "megablocks", "#0b2f66", "^"),
    "megablocks_grouped_cublas": Look("Megablocks grouped cuBLAS", "megablocks", "#8fc1ea", "v", DASHDOT),
    "megablocks_grouped_cutlass": Look("Megablocks grouped CUTLASS", "megablocks", "#2f7fc1", "D", DASH),
    "vllm": Look("vLLM", "serving", "#00684a", "P"),
    "vllm_tuned": Look("vLLM tuned", "serving", "#2aa876", "P", DASH),
    "sglang": Look("SGLang", "serving", "#79c99e", "X", DASHDOT),
    "openai_triton_kernels": Look("OpenAI triton_kernels", "serving", "#4b7f13", "p"),
    "scattermoe": Look("ScatterMoE", "research", "#9c8f1f", "h", DASH),
    "tritonmoe": Look("TritonMoE (the paper's code)", "research", "#c9b037", "8", DASHDOT),
    "cutlass_grouped": Look("CUTLASS grouped", "library", "#0f7f8c", "<"),
    "cublas_grouped": Look("cuBLAS grouped", "library", "#6cc5cf", ">"),
    "torch_grouped_mm": Look("PyTorch grouped_mm", "pytorch", "#9b72cf", "<", DASHDOT),
    "torch_grouped_mm_compiled": Look("PyTorch grouped_mm compiled", "pytorch", "#4a1f86", ">", DASH),
    "torch_loop": Look("PyTorch loop", "pytorch", "#c7b6e6", "d", DOT),
    "tutel": Look("Tutel", "training", "#7a4a2b", "H"),
    "fastmoe": Look("FastMoE", "training", "#a97c50", "1", DASH),
    "deepspeed_moe": Look("DeepSpeed-MoE", "training", "#c9a27e", "2", DASHDOT),
    "magma_vbatched": Look("MAGMA vbatched", "library", "#7d8b99", "3", DOT),
}
"""In the order of every legend: the limit, ours, the paper's, then the field."""

MODELS = {
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
}
"""Labels of the models, in the order of panels: the paper's first."""

_MARKERS = "os^vDPX<>ph*d8H"
_LINES: tuple[Line, ...] = ("-", DASH, DASHDOT, DOT)


def look(name: str) -> Look:
    """The look of a system, listed or not."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    seed = zlib.crc32(name.encode())
    hue, dark = seed % 360 / 360, 0.3 + seed // 360 % 5 * 0.1
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, dark, 0.75))
    family = name.split("_")[0]
    return Look(
        name, family, f"#{red:02x}{green:02x}{blue:02x}", _MARKERS[seed // 7 % len(_MARKERS)], _LINES[seed // 11 % 4]
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Systems in the order of every figure: the listed ones, then the others by name."""
    listed = list(SYSTEMS)
    return sorted(set(names), key=lambda name: (listed.index(name) if name in SYSTEMS else len(listed), name))


def models_in_order(names: Iterable[str]) -> list[str]:
    """Models in the order of every figure: the listed ones, then the others by name."""
    listed = list(MODELS)
    return sorted(set(names), key=lambda name: (listed.index(name) if name in MODELS else len(listed), name))


def model_label(name: str) -> str:
    return MODELS.get(name, name)


def apply() -> None:
    """Sets matplotlib's defaults for all figures. Text stays text in the PDF."""
    rcParams.update({
        "font.family": "DejaVu Sans", "font.size": FONT_PT, "axes.titlesize": FONT_PT + 0.5, "axes.labelsize": FONT_PT,
        "xtick.labelsize": FONT_PT, "ytick.labelsize": FONT_PT, "legend.fontsize": FONT_PT, "figure.titlesize": 9.0,
        "figure.titleweight": "bold", "text.color": INK, "axes.edgecolor": "#666666", "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
        "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5, "ytick.minor.size": 1.5,
        "ytick.minor.width": 0.4, "axes.grid": True, "grid.color": "#e3e3e3", "grid.linewidth": 0.5,
        "axes.axisbelow": True, "lines.linewidth": 1.0, "lines.markersize": 3.2, "lines.markeredgewidth": 0.8,
        "hatch.linewidth": 0.5, "legend.frameon": False, "legend.handlelength": 2.6, "legend.columnspacing": 1.2,
        "legend.borderpad": 0.3, "legend.borderaxespad": 0.0, "legend.labelspacing": 0.35,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlepad": 3.0, "axes.labelpad": 2.0,
        "xtick.major.pad": 2.0, "ytick.major.pad": 2.0, "pdf.fonttype": 42, "mathtext.default": "regular",
    })  # fmt: skip
