"""The paper's published numbers, from results/paper/: the only place where they are read."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
import yaml

from tritonmoe_bench import ROOT

PAPER = ROOT / "results" / "paper"
OUR_NAMES = {"mixtral-8x7b": "mixtral", "deepseek-v3": "deepseek_v3", "qwen2-moe-57b": "qwen2_paper"}
"""Our names of the models, by the paper's."""


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
    return {
        entry["id"]: entry["figures"] for entry in yaml.safe_load((PAPER / "claims.yaml").read_text(encoding="utf-8"))
    }[claim_id]


def _models(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(model=frame["model"].map(OUR_NAMES).fillna(frame["model"]))
