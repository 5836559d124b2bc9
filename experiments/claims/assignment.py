"""The claim on dynamic assignment, decided by the heights study, where nothing but the choice of heights differs.

`fastvariant_dynamic` chooses the height of each tile on the GPU from the rows of its block, `fastvariant_fixed<rows>`
has one for all. Whether that repairs the regime in which the paper's tiles fall behind, the skew study tells: `fast`,
which has dynamic heights, against Megablocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, compare, rows_text, span
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule
from .skew import EXTREME
from .speed import MEGABLOCKS

DYNAMIC, FIXED = "fastvariant_dynamic", "fastvariant_fixed"
FAST, PAPERS = "fast", "paper_fused_graph"


@rule(
    "dynamic-assignment",
    "Points of the heights study: {experts_from} experts or more, Zipf exponent above " + f"{EXTREME:g}, {DYNAMIC} "
    f"(tile height chosen on the GPU from each block's rows) against {FIXED}" + "{fixed_rows} (the paper's height for "
    "all, everything else equal), CUDA graph; of the skew study in the same regime: " + f"{FAST} against the fastest "
    "Megablocks path, eager to eager. Holds if at each point dynamic heights are faster beyond the noise, at each "
    f"{FAST} is not behind Megablocks beyond it, and {PAPERS} is behind at some, so that there is something to repair; "
    "in part if the first two are so at some; does not hold if one of them is so at none.",
    figure="dynamic_heights",
)
def dynamic_assignment(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    heights, skew = evidence.study("heights"), evidence.study("skew")
    fixed = f"{FIXED}{figures['fixed_rows']}"
    pairs = compare(heights, DYNAMIC, [fixed], "best")
    best = _fastest_peer(compare(heights, DYNAMIC, _fixed_heights(heights), "best"))
    paths = _fastest_peer(compare(skew, FAST, MEGABLOCKS, "eager"))
    inside, of_best, against = (_in_regime(table, figures) for table in (pairs, best, paths))
    if inside.empty or against.empty:
        frame = heights if inside.empty else skew
        name = "heights" if inside.empty else "skew"
        raise NoEvidence(f"The study {name} has no point timed for both sides in this regime", rows_text(frame, 0))
    faster, slower, ahead = inside["low"] > 1, inside["high"] < 1, against["high"] >= 1
    outside = pairs.drop(inside.index)
    elsewhere = f", {span(outside['ratio'])} outside it" if len(outside) else ""
    measured = (
        f"dynamic / {figures['fixed_rows']} rows for all {span(inside['ratio'])} in the regime{elsewhere}; dynamic / "
        f"best single height of each point {span(of_best['ratio'])}; {FAST} / fastest Megablocks "
        f"{span(against['ratio'])}"
    )
    to_repair, behind = _papers_behind(skew, figures)
    sentence = (
        f"With {figures['experts_from']} experts or more and skew above {EXTREME:g}, dynamic heights are faster than "
        f"{figures['fixed_rows']} rows for all at {int(faster.sum())} of {len(inside)} points and slower at "
        f"{int(slower.sum())}, {span(inside['ratio'])} times their speed{elsewhere}; the best single height is "
        f"{_heights_text(of_best)}, and dynamic ones are {span(of_best['ratio'])} times as fast as the best of each "
        f"point. {FAST} is not behind the fastest Megablocks path at {int(ahead.sum())} of {len(against)} points, and "
        f"the paper's tiles {behind}{'' if to_repair else ': nothing to repair'}."
    )
    verdict = Verdict.of(faster.all() and ahead.all() and to_repair, faster.any() and ahead.any())
    rows = f"{rows_text(heights, rows_of(inside))}; {rows_text(skew, rows_of(against))}"
    return Finding(verdict, measured, sentence, rows, (int(faster.sum()) if to_repair else 0, len(inside)))


def _in_regime(pairs: pd.DataFrame, figures: Mapping[str, Any]) -> pd.DataFrame:
    return pairs[(pairs["num_experts"] >= figures["experts_from"]) & (pairs["skew"] > EXTREME)]


def _fixed_heights(frame: pd.DataFrame) -> list[str]:
    return sorted(name for name in frame["implementation"].unique() if str(name).startswith(FIXED))


def _fastest_peer(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.sort_values("ratio").drop_duplicates("case_hash")


def _heights_text(best: pd.DataFrame) -> str:
    """At how many points each height is the best single one."""
    counts = best["peer"].str.removeprefix(FIXED).astype(int).value_counts().sort_index()
    return ", ".join(f"{rows} rows at {count}" for rows, count in counts.items())


def _papers_behind(skew: pd.DataFrame, figures: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether there is something to repair, and at how many points of the regime the paper's tiles are behind."""
    try:
        pairs = _in_regime(_fastest_peer(compare(skew, PAPERS, MEGABLOCKS, "eager")), figures)
    except NoEvidence:
        return False, "were not compared with it there"
    behind = int((pairs["high"] < 1).sum())
    return behind > 0, f"are behind it at {behind} of {len(pairs)} there"
