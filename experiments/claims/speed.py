"""Claims on the speed of the paper's pipeline: against Megablocks, and fused against unfused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import compare, ratios, sources
from ..analysis.names import GPU_SCHEDULE, MEGABLOCKS, PAPER, UNFUSED
from ..workload.config import PAPER_MODELS
from .evidence import Evidence, rows_of
from .finding import Finding, OwnCode, Verdict, rule

MAX_TOKENS = 512


def paper_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the paper's three models at its batch sizes."""
    return frame[frame["model"].isin(PAPER_MODELS) & (frame["tokens"] <= MAX_TOKENS)]


@rule("throughput-vs-megablocks", figure="paper_ratios", of_paper_code=True, max_tokens=MAX_TOKENS)
def throughput_vs_megablocks(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    pairs = compare(paper_points(frame), PAPER, MEGABLOCKS, "eager")
    below = int((pairs["high"] < figures["low"]).sum())
    above = int((pairs["low"] > figures["high"]).sum())
    inside = len(pairs) - below - above
    absent = [model for model in PAPER_MODELS if model not in set(pairs["model"])]
    verdict = Verdict.of(inside == len(pairs) and not absent, inside > 0)
    numbers = {
        "pairs": pairs, "inside": inside, "above": above, "below": below, "absent": absent,
        "gpu_schedule": _in_a_graph(frame),
    }  # fmt: skip
    own = OwnCode.by_ratios(evidence.own_code["over_megablocks"], figures["low"], figures["high"])
    deciding = sources(frame, rows_of(pairs))
    return Finding(verdict, numbers, deciding, (inside, len(pairs)), (above, below), own_code=own)


@rule("mixtral-32-tokens", figure="paper_ratios", of_paper_code=True)
def mixtral_32_tokens(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    published = {int(tokens): float(ratio) for tokens, ratio in figures.items()}
    rows = frame[(frame["model"] == "mixtral") & frame["tokens"].isin(list(published))]
    pairs = compare(rows, PAPER, MEGABLOCKS, "eager")
    pairs["reached"] = pairs["high"] >= pairs["tokens"].map(published)
    verdict = Verdict.of(pairs["reached"].all() and set(published) == set(pairs["tokens"]), pairs["reached"].any())
    reached = int(pairs["reached"].sum())
    missed = len(pairs) - reached
    numbers = {"pairs": pairs, "gpu_schedule": _in_a_graph(rows), "missed": missed}
    there = evidence.own_code
    there = there[(there["model"] == "mixtral") & there["tokens"].isin(list(published))]
    own = OwnCode.by_ratios(there["over_megablocks"], there["tokens"].map(published), math.inf)
    deciding = sources(frame, rows_of(pairs))
    return Finding(verdict, numbers, deciding, (reached, len(pairs)), (0, missed), own_code=own)


@rule("fused-over-unfused", figure="paper_ratios", of_paper_code=True, max_tokens=MAX_TOKENS)
def fused_over_unfused(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    pairs = compare(paper_points(frame), PAPER, [UNFUSED], "eager")
    faster = pairs["low"] > 1
    inside = pairs["ratio"].between(figures["low"], figures["high"])
    same = int(((pairs["low"] <= 1) & (pairs["high"] >= 1)).sum())
    below = int((pairs["ratio"] < figures["low"]).sum())
    above = int((pairs["ratio"] > figures["high"]).sum())
    numbers = {
        "pairs": pairs, "faster": int(faster.sum()), "same": same, "slower": len(pairs) - int(faster.sum()) - same,
        "inside": int(inside.sum()), "median": pairs["ratio"].median(),
        "below": below, "above": above,
    }  # fmt: skip
    verdict = Verdict.of(inside.all(), inside.any())
    own = OwnCode.by_ratios(evidence.own_code["over_unfused"], figures["low"], figures["high"])
    held = int(inside.sum()), len(pairs)
    return Finding(verdict, numbers, sources(frame, rows_of(pairs)), held, (above, below), own_code=own)


def _in_a_graph(frame: pd.DataFrame) -> pd.Series:
    """What paper_fused_graph, which a CUDA graph can hold, reaches at the same points; empty where it did not run."""
    return ratios(paper_points(frame), GPU_SCHEDULE, MEGABLOCKS, "best")["ratio"]
