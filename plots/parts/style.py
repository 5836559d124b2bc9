"""How each system looks, in every figure: its place in the order, label, colour, marker and line style.

A family shares a hue; its members differ in luminance, marker and line style too, so that they read in greyscale. A
system that is not listed has the hue of its family, which the record of a run tells, and from its name a shade, a
marker and a line that no listed one has; it stands after the listed ones.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass
from typing import Any

from matplotlib import rcParams

from tritonmoe_bench.experiments.analysis import names

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

LOOKS: dict[str, tuple[Any, ...]] = {
    "stream": ("#000000", "None", DOT),
    "fast": ("#c1002f", "*"),
    "paper_fused": ("#e66100", "o"),
    "paper_fused_graph": ("#8f2d00", "s"),
    "paper_unfused": ("#f2a65a", "o", DASH),
    "megablocks_sparse": ("#0b2f66", "^"),
    "megablocks_grouped_cublas": ("#8fc1ea", "v", DASHDOT),
    "megablocks_grouped_cutlass": ("#2f7fc1", "D", DASH),
    "vllm": ("#00684a", "P"),
    "vllm_tuned": ("#2aa876", "P", DASH),
    "sglang": ("#79c99e", "X", DASHDOT),
    "openai_triton_kernels": ("#4b7f13", "p"),
    "scattermoe": ("#9c8f1f", "h", DASH),
    "tritonmoe": ("#c9b037", "8", DASHDOT),
    "cutlass_grouped": ("#0f7f8c", "<"),
    "cublas_grouped": ("#6cc5cf", ">"),
    "cublas_streams": ("#0a4d57", "d", DASH),
    "deep_gemm": ("#3c9aa8", "^", DASHDOT),
    "torch_grouped_mm": ("#9b72cf", "<", DASHDOT),
    "torch_grouped_mm_compiled": ("#4a1f86", ">", DASH),
    "torch_loop": ("#c7b6e6", "d", DOT),
    "tutel": ("#7a4a2b", "H"),
    "tutel_megablocks": ("#b5835a", "4", DASH),
    "fastmoe": ("#a97c50", "1", DASH),
    "deepspeed_moe": ("#c9a27e", "2", DASHDOT),
    "magma_vbatched": ("#7d8b99", "3", DOT),
}
"""Colour, marker and line style of each listed system (experiments/analysis/names.py)."""

_UNUSED: list[tuple[str, Line]] = [
    (marker, line)
    for marker in "os^vDPX<>ph*d8H"
    for line in ("-", DASH, DASHDOT, DOT)
    if (marker, line)
    not in {(look.marker, look.linestyle) for look in (Look("", "", *values) for values in LOOKS.values())}
]
_SHADES = tuple(0.22 + 0.045 * step for step in range(9))


def look(name: str) -> Look:
    """The look of a system, listed or not."""
    label, family = names.label_of(name), names.family_of(name)
    if name in LOOKS:
        return Look(label, family, *LOOKS[name])
    seed = zlib.crc32(name.encode())
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(_hue(family), _SHADES[seed % 9], 0.75))
    return Look(label, family, f"#{red:02x}{green:02x}{blue:02x}", *_UNUSED[seed // 9 % len(_UNUSED)])


def _hue(family: str) -> float:
    """That of the first listed system of the family, else one from the family's name."""
    for listed, (color, *_) in LOOKS.items():
        if names.family_of(listed) == family:
            red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
            return colorsys.rgb_to_hls(red, green, blue)[0]
    return zlib.crc32(family.encode()) % 360 / 360


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


MODEL_LOOKS: tuple[tuple[str, str, Line], ...] = (
    ("#8f2d00", "o", "-"),
    ("#2f7fc1", "^", DASH),
    ("#111111", "s", DASHDOT),
    ("#9b72cf", "D", DOT),
)
"""Colour, marker and line of each model, in the order of all figures, where lines are models."""
