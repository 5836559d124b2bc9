"""How each system looks, in every figure: its place in the order, label, colour, marker and line style.

A family shares a hue; its members differ in luminance, marker and line style too, so that they read in greyscale. A
system that is not listed has the hue of its family, which the record of a run tells, and from its name a shade, a
marker and a line that no listed one has; it stands after the listed ones.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Mapping
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
    "cublas_streams": Look("cuBLAS on streams", "library", "#0a4d57", "d", DASH),
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

_UNUSED: list[tuple[str, Line]] = [
    (marker, line)
    for marker in "os^vDPX<>ph*d8H"
    for line in ("-", DASH, DASHDOT, DOT)
    if (marker, line) not in {(look.marker, look.linestyle) for look in SYSTEMS.values()}
]
_SHADES = tuple(0.22 + 0.045 * step for step in range(9))
_families: dict[str, str] = {}


def learn(families: Mapping[str, str]) -> None:
    """Remembers the families of systems, by name, as their adapters give them; listed systems keep their own."""
    _families.update(families)


def look(name: str) -> Look:
    """The look of a system, listed or not."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    family = _families.get(name, name.split("_")[0])
    if family in SYSTEMS:
        family = SYSTEMS[family].family
    seed = zlib.crc32(name.encode())
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(_hue(family), _SHADES[seed % 9], 0.75))
    return Look(name, family, f"#{red:02x}{green:02x}{blue:02x}", *_UNUSED[seed // 9 % len(_UNUSED)])


def _hue(family: str) -> float:
    """That of the first listed system of the family, else one from the family's name."""
    for listed in SYSTEMS.values():
        if listed.family == family:
            red, green, blue = (int(listed.color[at : at + 2], 16) / 255 for at in (1, 3, 5))
            return colorsys.rgb_to_hls(red, green, blue)[0]
    return zlib.crc32(family.encode()) % 360 / 360


def in_order(names: Iterable[str]) -> list[str]:
    """Systems in the order of every figure: the listed ones, then the others by name."""
    listed = list(SYSTEMS)
    return sorted(set(names), key=lambda name: (listed.index(name) if name in SYSTEMS else len(listed), name))


def models_in_order(names: Iterable[str]) -> list[str]:
    """Models in the order of every figure: the listed ones, each before its shards, then the others by name."""
    listed = list(MODELS)

    def key(name: str) -> tuple[int, str, str]:
        model, shard = _parts(name)
        return (listed.index(model) if model in MODELS else len(listed), model, shard)

    return sorted(set(names), key=key)


def model_label(name: str) -> str:
    """`mixtral tp8`, a shard as experiments/plan.py names it, is Mixtral-8x7B tp8."""
    model, shard = _parts(name)
    return " ".join(filter(None, (MODELS.get(model, model), shard)))


def _parts(name: str) -> tuple[str, str]:
    model, _, shard = name.partition(" ")
    return model, shard


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
