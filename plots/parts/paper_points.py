"""The paper's published points and bands, from results/paper/: the only place where figures get them."""

from __future__ import annotations

from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tritonmoe_bench.experiments.analysis.published import claim

from . import style

STAR: dict[str, Any] = {
    "color": style.CLAIM, "marker": "*", "ms": 6.5, "mec": "white", "mew": 0.5, "ls": "none", "zorder": 5,
}  # fmt: skip
"""How a published point looks."""


def draw_band(axes: Axes, claim_id: str) -> None:
    """The claimed range of a ratio, and the line of 1."""
    figures = claim(claim_id)
    axes.axhspan(figures["low"], figures["high"], color=style.BAND, lw=0, zorder=0.5)
    axes.axhline(1, color=style.INK, lw=0.7, zorder=0.6)


def handles() -> list[Artist]:
    """Legend entries of band and points."""
    return [
        Patch(color=style.BAND, label="the paper's claim"),
        Line2D([], [], **STAR, label="published (A100, fp16)"),
    ]
