"""How each system looks, in every figure: its place in the order, label, colour, marker and line style.

A family shares a hue; its members differ in luminance, marker and line style too, so that they read in greyscale. A
system that is not listed has the hue of its family, which the record of a run tells, and from its name a shade, a
marker and a line that no listed one has; it stands after the listed ones.
"""

from __future__ import annotations

import colorsys
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import rcParams
from matplotlib.colors import to_rgb

from tritonmoe_bench.experiments.analysis import names

FONT_PT, SMALL_PT = 7.0, 5.2
"""Of all text, at the width that a figure is drawn for; the small one is that of the line of provenance alone."""
INK = "#222222"
GREY = "#a6a6a6"
"""Of systems that are shown for the range that they span, not one by one."""
BAND = "#ebe5d3"
CLAIM = "#d0003c"
"""Of what the paper claims."""
LEAST_CONTRAST = 3.0
"""Of a system's colour to white."""


Line = Any
"""A line style as matplotlib takes it: a name, or (offset, on and off lengths)."""


@dataclass(frozen=True)
class Look:
    """family: systems of one hue; marker: as matplotlib takes it."""

    label: str
    family: str
    color: str
    marker: str | tuple[int, Literal[0, 1, 2], int]
    linestyle: Line = "-"


DASH, DOT, DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))

LOOKS: dict[str, tuple[Any, ...]] = {
    "stream": ("#000000", "None", DOT),
    "fast": ("#c1002f", "*"),
    "paper_fused": ("#e66100", "o"),
    "paper_fused_graph": ("#8f2d00", "s"),
    "paper_unfused": ("#c26a12", "o", DASH),
    "megablocks_sparse": ("#0b2f66", "^"),
    "megablocks_grouped_cublas": ("#4a90d9", "v", DASHDOT),
    "megablocks_grouped_cutlass": ("#2f7fc1", "D", DASH),
    "vllm": ("#00684a", "P"),
    "vllm_tuned": ("#1f9e6b", "s", DASH),
    "vllm_marlin": ("#2b8f5f", "v", DOT),
    "humming": ("#0b5d3b", "D", DASHDOT),
    "humming_a8": ("#5c9a3c", "d", DASHDOT),
    "sglang": ("#3f9a6d", "X", DASHDOT),
    "openai_triton_kernels": ("#4b7f13", "p"),
    "scattermoe": ("#9c8f1f", "h", DASH),
    "sonicmoe": ("#7d6b00", "2", DOT),
    "tritonmoe": ("#5c4300", "8", DASHDOT),
    "cutlass_grouped": ("#0f7f8c", "<"),
    "cublas_grouped": ("#1b98a6", ">"),
    "cublas_streams": ("#0a4d57", "d", DASH),
    "deep_gemm": ("#3c9aa8", "^", DASHDOT),
    "finegrained_fp8": ("#2a7f9c", "p", DOT),
    "flashinfer_mono": ("#12505e", "1", DOT),
    "flashinfer_cutlass": ("#1a6d8f", (4, 1, 0), DASHDOT),
    "torch_grouped_mm": ("#9b72cf", "<", DASHDOT),
    "torch_grouped_mm_compiled": ("#4a1f86", ">", DASH),
    "torch_batched_mm": ("#7a4fc0", "s", DOT),
    "torch_loop": ("#a07cc9", "d", DOT),
    "tutel": ("#7a4a2b", "H"),
    "tutel_megablocks": ("#b5835a", "4", DASH),
    "fastmoe": ("#a97c50", "1", DASH),
    "deepspeed_moe": ("#b07f55", "2", DASHDOT),
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
    shade = _SHADES[seed % 9]
    while contrast(color := _hex(colorsys.hls_to_rgb(_hue(family), shade, 0.75))) < LEAST_CONTRAST:
        shade -= 0.02
    return Look(label, family, color, *_UNUSED[seed // 9 % len(_UNUSED)])


def contrast(color: Any) -> float:
    """Of a colour to white, from 1 to 21, by WCAG 2."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color))
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def _hex(parts: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


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
        "xtick.labelsize": FONT_PT, "ytick.labelsize": FONT_PT, "legend.fontsize": FONT_PT,
        "figure.titlesize": FONT_PT + 1.5, "figure.titleweight": "bold", "text.color": INK,
        "axes.edgecolor": "#666666", "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
        "ytick.major.size": 2.5, "ytick.minor.size": 1.5, "ytick.minor.width": 0.4, "axes.grid": True,
        "grid.color": "#e3e3e3", "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.0,
        "lines.markersize": 3.2, "lines.markeredgewidth": 0.8, "hatch.linewidth": 0.5, "legend.frameon": False,
        "legend.handlelength": 2.6, "legend.columnspacing": 1.2, "legend.borderpad": 0.3, "legend.borderaxespad": 0.0,
        "legend.labelspacing": 0.35, "axes.spines.top": False, "axes.spines.right": False, "axes.titlepad": 3.0,
        "axes.labelpad": 2.0, "xtick.major.pad": 2.0, "ytick.major.pad": 2.0, "pdf.fonttype": 42,
        "mathtext.default": "regular",
    })  # fmt: skip


MODEL_LOOKS: tuple[tuple[str, str, Line], ...] = (
    ("#8f2d00", "o", "-"),
    ("#2f7fc1", "^", DASH),
    ("#111111", "s", DASHDOT),
    ("#8a5cc2", "D", DOT),
    ("#4b7f13", "v", "-"),
)
"""Colour, marker and line of models, in the order of all figures."""


def model_look(model: str) -> tuple[str, str, Line]:
    """Colour, marker and line of a model where lines are models: the same in every figure."""
    listed = list(names.MODEL_LABELS)
    place = listed.index(model) if model in listed else zlib.crc32(model.encode())
    return MODEL_LOOKS[place % len(MODEL_LOOKS)]
