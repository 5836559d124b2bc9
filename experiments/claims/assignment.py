"""The claim on dynamic assignment, decided by the skew study: `fast` against fixed tiles and against Megablocks.

`fast` chooses the height of each tile on the GPU from the rows of its expert; paper_fused_graph has 64-row tiles for
all. The two differ in more than that, so the sentence gives their ratio outside the regime too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .evidence import Evidence, NoEvidence, compare, rows_of, rows_text, span
from .finding import Finding, Verdict, rule
from .skew import EXTREME
from .speed import MEGABLOCKS

DYNAMIC, FIXED = "fast", "paper_fused_graph"
EXPERTS_FROM = 64
"""Of the regime that the claim skew-regime names, and this one means."""


@rule(
    "dynamic-assignment",
    f"Points: skew study, {EXPERTS_FROM} experts or more, Zipf exponent above {EXTREME:g}, {DYNAMIC} (tile height "
    f"chosen on the GPU from each expert's rows) against {FIXED} (64 rows for all) in the best launch mode, and "
    "against the fastest Megablocks path, eager to eager. A point holds if it is faster than the fixed tiles beyond "
    "the noise and not slower than Megablocks beyond it. Holds if each point does; in part if some do; does not hold "
    "if none does.",
    figure="latency_vs_skew",
)
def dynamic_assignment(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    fixed = compare(frame, DYNAMIC, [FIXED], "best")
    paths = compare(frame, DYNAMIC, MEGABLOCKS, "eager")
    megablocks = paths.sort_values("ratio").drop_duplicates("case_hash")
    inside = fixed[_in_regime(fixed)].merge(
        megablocks[["case_hash", "ratio", "high"]], on="case_hash", suffixes=("", "_megablocks")
    )
    if inside.empty:
        raise NoEvidence("The skew study has no point timed for all sides in this regime", rows_text(frame, 0))
    faster, slower = inside["low"] > 1, inside["high"] < 1
    repaired = faster & (inside["high_megablocks"] >= 1)
    ahead = int((inside["high_megablocks"] >= 1).sum())
    outside = fixed[~_in_regime(fixed)]
    elsewhere = f" (outside the regime {span(outside['ratio'])})" if len(outside) else ""
    measured = (
        f"{DYNAMIC} / fixed tiles {span(inside['ratio'])} in the regime"
        + (f", {span(outside['ratio'])} outside it" if len(outside) else "")
        + f"; {DYNAMIC} / fastest Megablocks {span(inside['ratio_megablocks'])} in it"
    )
    sentence = (
        f"With {EXPERTS_FROM} experts or more and skew above {EXTREME:g}, {DYNAMIC} is faster than the fixed tiles at "
        f"{int(faster.sum())} of {len(inside)} points and slower at {int(slower.sum())}, {span(inside['ratio'])} "
        f"times their speed{elsewhere}; it is not behind the fastest Megablocks path at {ahead}, and the fixed tiles "
        f"{_fixed_behind(frame)}."
    )
    verdict = Verdict.of(repaired.all(), repaired.any())
    deciding = rows_of(pd.concat([fixed[_in_regime(fixed)], paths[_in_regime(paths)]]))
    return Finding(verdict, measured, sentence, rows_text(frame, deciding))


def _in_regime(pairs: pd.DataFrame) -> pd.Series:
    return (pairs["num_experts"] >= EXPERTS_FROM) & (pairs["skew"] > EXTREME)


def _fixed_behind(frame: pd.DataFrame) -> str:
    """Whether there is something to repair: at how many points of the regime the fixed tiles are behind Megablocks."""
    try:
        pairs = compare(frame, FIXED, MEGABLOCKS, "eager")
    except NoEvidence:
        return "were not compared with it there"
    pairs = pairs[_in_regime(pairs)].sort_values("ratio").drop_duplicates("case_hash")
    return f"are behind it at {int((pairs['high'] < 1).sum())} of {len(pairs)} there"
