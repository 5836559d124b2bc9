"""The claim on fused routing, decided by the fusion study: gather and scatter in the GEMMs, or passes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..analysis.compare import compare, sources
from ..analysis.fusion import FUSED, PERMUTED, process_noise
from ..analysis.noise import same_process
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule


@rule("fused-routing-neutral", figure="ablations")
def fused_routing_neutral(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("fusion")
    # How far two processes differ is measured here on the very forward that is compared.
    pairs = compare(same_process(frame), FUSED, [PERMUTED], "best")
    noise, repeats = process_noise(frame)
    neutral = (pairs["low"] / noise <= figures["ratio"]) & (figures["ratio"] <= pairs["high"] * noise)
    faster = int((~neutral & (pairs["ratio"] > figures["ratio"])).sum())
    numbers = {
        "pairs": pairs, "neutral": int(neutral.sum()), "faster": faster,
        "slower": len(pairs) - int(neutral.sum()) - faster, "noise": noise, "repeats": repeats,
    }  # fmt: skip
    held = int(neutral.sum()), len(pairs)
    return Finding(Verdict.of(neutral.all(), neutral.any()), numbers, sources(frame, rows_of(pairs)), held)
