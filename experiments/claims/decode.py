"""The claims on warp decode, decided by the decode study: our output-centric path against our expert-centric one.

No code of the claims' authors is public, and they measured whole decode steps of a model on a B200; here it is one
layer on the GPU at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, compare, no_pairs, sources
from ..analysis.decode import EXPERT, OUTPUT, crossing, errors
from ..analysis.names import LIMIT
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule

MODEL = "qwen3_30b_a3b"
"""The shape of the study that is the nearest to the claim's, a model "in the style of Qwen 3"."""


@rule("warp-decode-throughput", figure="ablations", model=MODEL)
def warp_decode_throughput(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("decode")
    pairs = compare(frame, OUTPUT, [EXPERT], "best")
    here = _claimed(pairs, figures)
    if here.empty:
        raise NoEvidence(f"The decode study has no point of {MODEL} at {figures['tokens']} tokens", sources(frame, 0))
    shares = _claimed(compare(frame, OUTPUT, [LIMIT], "best"), figures)["ratio"]
    reached = bool((here["high"] >= figures["speedup"]).all())
    streamed = len(shares) > 0 and bool((shares >= figures["fraction_of_read_peak"]).all())
    faster, slower = pairs["low"] > 1, pairs["high"] < 1
    numbers = {
        "pairs": pairs, "here": here, "held": int(reached and streamed),
        "shares": shares, "faster": int(faster.sum()), "slower": int(slower.sum()),
        "same": len(pairs) - int((faster | slower).sum()),
        "most": int(pairs.loc[faster, "tokens"].max()) if faster.any() else 0,
        "crossings": {model: _crossing(group) for model, group in pairs.groupby("model", sort=False)},
    }  # fmt: skip
    held = reached and streamed
    return Finding(Verdict.of(held, held), numbers, sources(frame, rows_of(pairs)), (int(held), 1))


@rule("warp-decode-accuracy")
def warp_decode_accuracy(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("decode")
    table = errors(frame)
    if table.empty:
        raise no_pairs(frame, [OUTPUT, EXPERT])
    closer, reached = int((table["ratio"] > 1).sum()), int((table["ratio"] >= figures["ratio"]).sum())
    numbers = {"errors": table, "closer": closer, "reached": reached, "of_plain": table["plain"] / table["output"]}
    verdict = Verdict.of(reached == len(table), reached > 0)
    return Finding(verdict, numbers, sources(frame, 2 * len(table)), (reached, len(table)))


def _claimed(pairs: pd.DataFrame, figures: Mapping[str, Any]) -> pd.DataFrame:
    """The points of the claim's batch size, on the model nearest to its own."""
    return pairs[(pairs["model"] == MODEL) & (pairs["tokens"] == figures["tokens"])]


def _crossing(pairs: pd.DataFrame) -> dict[str, Any]:
    """tokens at which the paths of one model cross, None if nowhere; always: whether the output-centric one is ahead
    at every point."""
    return {"tokens": crossing(pairs), "always": bool((pairs["ratio"] > 1).all())}
