"""The claim on dynamic assignment, decided by the heights study, where nothing but the choice of heights differs.

`fastvariant_dynamic` chooses the height of each tile on the GPU from the rows of its block, `fastvariant_fixed<rows>`
has one for all. Whether that repairs the regime in which the paper's tiles fall behind, the skew study tells: `fast`,
which has dynamic heights, against Megablocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, best_eager, compare, ratios, sources, to_best
from ..analysis.names import DYNAMIC, FAST, FIXED, GPU_SCHEDULE, MEGABLOCKS, fixed_heights
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule
from .skew import EXTREME


@rule("dynamic-assignment", figure="ablations", extreme=EXTREME)
def dynamic_assignment(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    heights, skew = evidence.study("heights"), evidence.study("skew")
    pairs = compare(heights, DYNAMIC, [f"{FIXED}{figures['fixed_rows']}"], "best")
    best = to_best(compare(heights, DYNAMIC, fixed_heights(heights["implementation"]), "best"))
    paths = best_eager(compare(skew, FAST, MEGABLOCKS, "eager"), skew, MEGABLOCKS)
    inside, of_best, against = (_in_regime(table, figures) for table in (pairs, best, paths))
    for name, frame, points in (("heights", heights, inside), ("skew", skew, against)):
        if points.empty:
            reason = f"The study {name} has no point timed for both sides in this regime"
            raise NoEvidence(reason, sources(frame, 0))
    faster, ahead = inside["low"] > 1, against["high"] >= 1
    papers = _in_regime(best_eager(ratios(skew, GPU_SCHEDULE, MEGABLOCKS, "eager"), skew, MEGABLOCKS), figures)
    behind = int((papers["high"] < 1).sum())
    best_rows = of_best["other"].str.removeprefix(FIXED).astype(int)
    numbers = {
        "inside": inside, "outside": pairs.drop(inside.index), "of_best": of_best, "against": against,
        "faster": int(faster.sum()), "slower": int((inside["high"] < 1).sum()), "ahead": int(ahead.sum()),
        "best_rows": best_rows.value_counts().sort_index(), "papers": papers, "behind": behind,
    }  # fmt: skip
    deciding = sources(heights, rows_of(inside)) + sources(skew, rows_of(against))
    if not behind:
        return Finding(Verdict.NOT_APPLICABLE, numbers, deciding)
    verdict = Verdict.of(faster.all() and ahead.all(), faster.any() and ahead.any())
    return Finding(verdict, numbers, deciding, (int(faster.sum()), len(inside)))


def _in_regime(pairs: pd.DataFrame, figures: Mapping[str, Any]) -> pd.DataFrame:
    return pairs[(pairs["num_experts"] >= figures["experts_from"]) & (pairs["skew"] > EXTREME)]
