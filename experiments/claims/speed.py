"""Claims on the speed of the paper's pipeline: against Megablocks, and fused against unfused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, compare, rows_text, span
from ..workload.config import PAPER_MODELS
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule

PAPER = "paper_fused"
GRAPH = "paper_fused_graph"
"""The same tiles with the schedule built on the GPU, so that a CUDA graph can hold it."""
UNFUSED = "paper_unfused"
MEGABLOCKS = ("megablocks_sparse", "megablocks_grouped_cublas", "megablocks_grouped_cutlass")
MAX_TOKENS = 512


def paper_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the paper's three models at its batch sizes."""
    return frame[frame["model"].isin(PAPER_MODELS) & (frame["tokens"] <= MAX_TOKENS)]


@rule(
    "throughput-vs-megablocks",
    "Points: the paper's three models, every batch size up to 512 tokens, fp16 and bf16, each Megablocks path that "
    "ran; eager against eager, as paper_fused and Megablocks both wait for the host. Holds if all three models have "
    "points and at each the throughput ratio lies in {low:.2f}–{high:.2f} within its noise; in part if it reaches "
    "{low:.2f} at some; does not hold if it is below {low:.2f} at all.",
    figure="ratio_to_megablocks",
)
def throughput_vs_megablocks(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    pairs = compare(paper_points(frame), PAPER, MEGABLOCKS, "eager")
    points = len(pairs)
    below = int((pairs["high"] < figures["low"]).sum())
    above = int((pairs["low"] > figures["high"]).sum())
    inside = points - below - above
    absent = [model for model in PAPER_MODELS if model not in set(pairs["model"])]
    verdict = Verdict.of(inside == points and not absent, below < points)
    measured = "; ".join(f"{path}: {span(group['ratio'])}" for path, group in pairs.groupby("peer"))
    without = f"; there is no point for {', '.join(absent)}" if absent else ""
    sentence = (
        f"Of {points} ratios of paper_fused to a Megablocks path, eager to eager, {inside} lie inside "
        f"{_band(figures)} within their noise, {above} above and {below} below{without}{_in_a_graph(frame)}."
    )
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), (inside, points))


@rule(
    "mixtral-32-tokens",
    "Points: Mixtral-8x7B at the batch sizes that the claim names, fp16 and bf16, each Megablocks path that ran, eager "
    "against eager. A point holds if the throughput ratio, with its noise, is at least the published one. Holds if all "
    "points do; in part if some do; does not hold if none does.",
    figure="ratio_to_megablocks",
)
def mixtral_32_tokens(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    published = {int(tokens): float(ratio) for tokens, ratio in figures.items()}
    rows = frame[(frame["model"] == "mixtral") & frame["tokens"].isin(list(published))]
    pairs = compare(rows, PAPER, MEGABLOCKS, "eager")
    pairs["published"] = pairs["tokens"].map(published)
    pairs["reached"] = pairs["high"] >= pairs["published"]
    verdict = Verdict.of(pairs["reached"].all() and set(published) == set(pairs["tokens"]), pairs["reached"].any())
    measured = "; ".join(f"{tokens} tokens: {span(group['ratio'])}" for tokens, group in pairs.groupby("tokens"))
    reached = ", ".join(
        f"{int(group['reached'].sum())} of {len(group)} at {tokens} tokens" for tokens, group in pairs.groupby("tokens")
    )
    sentence = f"The published ratio is reached, eager to eager, within the noise at {reached}{_in_a_graph(rows)}."
    held = int(pairs["reached"].sum()), len(pairs)
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), held)


@rule(
    "fused-over-unfused",
    "Points: the paper's three models, every batch size up to 512 tokens, fp16 and bf16, eager. Holds if at each "
    "paper_fused is faster than paper_unfused beyond the noise and the speed-up lies in {low:.2f}–{high:.2f} within "
    "it; in part if it is faster beyond the noise at some; does not hold if at none.",
    figure="fused_vs_unfused",
)
def fused_over_unfused(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    pairs = compare(paper_points(frame), PAPER, [UNFUSED], "eager")
    faster = pairs["low"] > 1
    inside = faster & (pairs["high"] >= figures["low"]) & (pairs["low"] <= figures["high"])
    same = int(((pairs["low"] <= 1) & (pairs["high"] >= 1)).sum())
    verdict = Verdict.of(inside.all(), faster.any())
    measured = "; ".join(f"{model}: {span(group['ratio'])}" for model, group in pairs.groupby("model"))
    sentence = (
        f"Fused is faster at {int(faster.sum())} of {len(pairs)} points, the same within noise at {same} and slower at "
        f"{len(pairs) - int(faster.sum()) - same}; the speed-up lies in {_band(figures)} within the noise at "
        f"{int(inside.sum())}, its median is {pairs['ratio'].median():.2f}."
    )
    held = int(inside.sum()), len(pairs)
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), held)


def _in_a_graph(frame: pd.DataFrame) -> str:
    """What paper_fused_graph, which a CUDA graph can hold, reaches at the same points; nothing where it did not run."""
    try:
        best = compare(paper_points(frame), GRAPH, MEGABLOCKS, "best")
    except NoEvidence:
        return ""
    return f"; with the schedule built on the GPU and each system in its best launch mode it is {span(best['ratio'])}"


def _band(figures: Mapping[str, Any]) -> str:
    return f"{figures['low']:.2f}–{figures['high']:.2f}"
