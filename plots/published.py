"""The paper's published points and bands, from results/paper/: the only place where figures get them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import style

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper"
MODELS = {"mixtral-8x7b": "mixtral", "deepseek-v3": "deepseek_v3", "qwen2-moe-57b": "qwen2_paper"}
"""The paper's names of the models, and ours."""
STAR: dict[str, Any] = {
    "color": "#d0003c", "marker": "*", "ms": 6.5, "mec": "white", "mew": 0.5, "ls": "none", "zorder": 5,
}  # fmt: skip
"""How a published point looks."""


@cache
def ratios(table: str, numerator: str, denominator: str) -> pd.DataFrame:
    """Columns model, tokens and ratio, of a table of a100_latency.csv: latency of `numerator` over `denominator`, that
    is, the speed of the latter relative to the former."""
    frame = _models(pd.read_csv(PAPER / "a100_latency.csv"))
    wide = frame[frame["table"] == table].pivot(
        index=["model", "tokens"], columns="implementation", values="latency_ms"
    )
    return (wide[numerator] / wide[denominator]).dropna().rename("ratio").reset_index()


@cache
def stages() -> pd.DataFrame:
    """Columns model, stage, variant (fused, unfused or both) and p50_us, of the published stage table."""
    frame = _models(pd.read_csv(PAPER / "a100_stages_512_tokens.csv"))
    parts = frame["stage"].str.extract(r"^(?P<stage>.*?)(?:_(?P<variant>fused|unfused))?$")
    return pd.DataFrame({
        "model": frame["model"], "stage": parts["stage"], "variant": parts["variant"].fillna("both"),
        "p50_us": frame["latency_ms"] * 1000,
    })  # fmt: skip


@cache
def claim(claim_id: str) -> dict[str, Any]:
    """The figures of a claim of claims.yaml. Raises KeyError if there is no such claim."""
    return {entry["id"]: entry["figures"] for entry in yaml.safe_load((PAPER / "claims.yaml").read_text())}[claim_id]


def draw_band(axes: Axes, claim_id: str) -> None:
    """The claimed range of a ratio, and the line of 1."""
    figures = claim(claim_id)
    axes.axhspan(figures["low"], figures["high"], color=style.BAND, lw=0, zorder=0.5)
    axes.axhline(1, color=style.INK, lw=0.7, zorder=0.6)


def band_text(claim_id: str) -> str:
    figures = claim(claim_id)
    return f"Band: {figures['low']:.2f} to {figures['high']:.2f}, as the paper claims; stars: its own points."


def handles() -> list[Artist]:
    """Legend entries of band and points."""
    return [
        Patch(color=style.BAND, label="the paper's claim"),
        Line2D([], [], **STAR, label="published (A100, fp16)"),
    ]


def _models(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(model=frame["model"].map(MODELS).fillna(frame["model"]))
