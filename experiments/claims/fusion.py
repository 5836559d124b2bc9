"""The claim on fused routing, decided by the fusion study: gather and scatter in the GEMMs, or passes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.compare import NoEvidence, compare, rows_text, span, timed
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule

FUSED, PERMUTED, AGAIN = "fastvariant_gather", "fastvariant_permute", "fast"


@rule(
    "fused-routing-neutral",
    "Points: fusion study, every model and batch size, gather fused into the grouped GEMMs over a permute pass before "
    "them, the same tiles, CUDA graph. A point is neutral if the ratio of their speeds is {ratio:g} within the noise: "
    "p20 to p80, widened by the most by which two processes that time the same forward differ (fast, where it runs "
    "the same tiles). Holds if each point is neutral; in part if some are; does not hold if none is.",
    figure="fusion",
)
def fused_routing_neutral(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("fusion")
    pairs = compare(frame, FUSED, [PERMUTED], "best")
    noise, repeats = process_noise(frame)
    neutral = (pairs["low"] / noise <= figures["ratio"]) & (figures["ratio"] <= pairs["high"] * noise)
    faster = int((~neutral & (pairs["ratio"] > figures["ratio"])).sum())
    measured = "; ".join(f"{model}: {span(group['ratio'])}" for model, group in pairs.groupby("model", sort=False))
    told = f"{100 * (noise - 1):.1f} % over {repeats} points" if repeats else "not measured"
    by_tokens = ", ".join(f"{span(group['ratio'])} at {tokens}" for tokens, group in pairs.groupby("tokens"))
    sentence = (
        f"Fusing changes nothing beyond the noise at {int(neutral.sum())} of {len(pairs)} points, is faster at "
        f"{faster} and slower at {len(pairs) - int(neutral.sum()) - faster}; by tokens the ratio is {by_tokens}. What "
        f"two processes differ by: {told}."
    )
    verdict = Verdict.of(neutral.all(), neutral.any())
    held = int(neutral.sum()), len(pairs)
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), held)


def process_noise(frame: pd.DataFrame) -> tuple[float, int]:
    """(largest ratio, one or more, between two timings of the same forward in two processes; at how many points)."""
    rows = timed(frame, "best")
    configs = rows.pivot_table(index="case_hash", columns="implementation", values="config", aggfunc="first")
    try:
        again = compare(frame, FUSED, [AGAIN], "best")
    except NoEvidence:
        return 1.0, 0
    same = again["case_hash"].map(configs[FUSED]) == again["case_hash"].map(configs[AGAIN])
    ratios = again.loc[same, "ratio"]
    return (float(np.exp(np.abs(np.log(ratios)).max())), len(ratios)) if len(ratios) else (1.0, 0)
