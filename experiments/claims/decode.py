"""The claims on warp decode, decided by the decode study: our output-centric path against our expert-centric one.

No code of the claims' authors is public, and they measured whole decode steps of a model on a B200; here it is one
layer on the GPU at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import compare, no_pairs, rows_text, span
from ..analysis.decode import EXPERT, OUTPUT, crossing, errors
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule

LIMIT = "stream"
MODEL = "qwen3_30b_a3b"
"""The shape of the study that is the nearest to the claim's, a model "in the style of Qwen 3"."""


@rule(
    "warp-decode-throughput",
    "Points: decode study, every model and batch size from 1 to 64 tokens, output-centric over expert-centric path, "
    f"CUDA graph. Holds if on {MODEL}, the nearest to the claim's model, at " + "{tokens} tokens the speed-up within "
    "its noise is at least {speedup} and the share of the measured read limit (stream's latency over the path's) at "
    "least {fraction_of_read_peak}; in part if the output-centric path is faster beyond the noise at some point; "
    "does not hold if at none. One layer, not a whole decode step.",
    figure="decode",
)
def warp_decode_throughput(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("decode")
    pairs = compare(frame, OUTPUT, [EXPERT], "best")
    shares = compare(frame, OUTPUT, [LIMIT], "best").assign(share=lambda rows: rows["ratio"])
    here = _claimed(pairs, figures)
    share = _claimed(shares, figures)["share"]
    reached = len(here) > 0 and bool((here["high"] >= figures["speedup"]).all())
    streamed = len(share) > 0 and bool((share >= figures["fraction_of_read_peak"]).all())
    faster, slower = pairs["low"] > 1, pairs["high"] < 1
    where = f"{MODEL}, {figures['tokens']} tokens"
    claimed = (
        f"speed-up {span(here['ratio'])} at {100 * share.iloc[0]:.0f} % of the read limit"
        if len(here) and len(share)
        else "not timed"
    )
    crossings = ", ".join(f"{model} {_crossing_text(group)}" for model, group in pairs.groupby("model", sort=False))
    measured = f"{where}: {claimed}; speed-up over all points {span(pairs['ratio'])}"
    sentence = (
        f"The output-centric path is faster than the expert-centric one at {int(faster.sum())} of {len(pairs)} points, "
        f"slower at {int(slower.sum())} and the same within noise at {len(pairs) - int((faster | slower).sum())}; it "
        f"is ahead up to {_most(pairs[faster])}. Where they cross: {crossings}."
    )
    verdict = Verdict.of(reached and streamed, faster.any())
    held = int(reached and streamed), 1
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), held)


@rule(
    "warp-decode-accuracy",
    "Points: decode study, every model and batch size; relative error against the float32 reference, expert-centric "
    "over output-centric path. Holds if it is at least {ratio} at each; in part if the output-centric path is closer "
    "to the reference at some; does not hold if at none.",
    figure="decode",
)
def warp_decode_accuracy(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("decode")
    found = errors(frame)
    if found.empty:
        raise no_pairs(frame, [OUTPUT, EXPERT])
    closer, reached = int((found["ratio"] > 1).sum()), int((found["ratio"] >= figures["ratio"]).sum())
    measured = "; ".join(f"{model}: {span(group['ratio'])}" for model, group in found.groupby("model", sort=False))
    sentence = (
        f"The output-centric path is closer to the float32 reference at {closer} of {len(found)} points, "
        f"{figures['ratio']} times or more at {reached}; the error of the expert-centric path is "
        f"{span(found['ratio'])} times its own, and PyTorch's own in 16 bits "
        f"{span(found['plain'] / found['output'])} times."
    )
    verdict = Verdict.of(reached == len(found), closer > 0)
    return Finding(verdict, measured, sentence, rows_text(frame, 2 * len(found)), (reached, len(found)))


def _claimed(pairs: pd.DataFrame, figures: Mapping[str, Any]) -> pd.DataFrame:
    """The points of the claim's batch size, on the model nearest to its own."""
    return pairs[(pairs["model"] == MODEL) & (pairs["tokens"] == figures["tokens"])]


def _crossing_text(pairs: pd.DataFrame) -> str:
    tokens = crossing(pairs)
    if tokens is not None:
        return f"at about {tokens:.1f} tokens"
    return "nowhere, always ahead" if (pairs["ratio"] > 1).all() else "nowhere, not ahead at the fewest tokens"


def _most(faster: pd.DataFrame) -> str:
    """The most tokens at which the path is ahead."""
    if faster.empty:
        return "no batch size"
    most = int(faster["tokens"].max())
    return f"{most} token{'s' * (most > 1)}"
