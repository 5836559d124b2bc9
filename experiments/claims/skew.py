"""Claims on load imbalance, decided by the skew study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, compare, fastest_first, sources, timed
from ..analysis.names import LIMIT, MEGABLOCKS, PAPER
from ..analysis.noise import same_process
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule

EXTREME = 1.0
"""The paper names no exponent for its "extreme" skew: here everything steeper than Zipf's own law."""


@rule("skew-regime", figure="skew", of_paper_code=True, extreme=EXTREME)
def skew_regime(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    pairs = compare(frame, PAPER, ["megablocks_sparse"], "eager")
    regime = (pairs["num_experts"] >= figures["experts_from"]) & (pairs["skew"] > EXTREME)
    inside, outside = pairs[regime], pairs[~regime]
    if inside.empty:
        raise NoEvidence("The skew study has no timed point in this regime", sources(frame, 0))
    behind = int((inside["high"] < 1).sum())
    numbers = {
        "inside": inside, "outside": outside, "behind": behind, "behind_outside": int((outside["high"] < 1).sum()),
    }  # fmt: skip
    verdict = Verdict.of(behind == len(inside), behind > 0)
    held = behind, len(inside)
    return Finding(verdict, numbers, sources(frame, rows_of(pairs)), held, (len(inside) - behind, 0))


@rule("imbalance-gain", figure="skew", of_paper_code=True)
def imbalance_gain(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    # One process timed a system at every skew.
    pairs = compare(same_process(frame), PAPER, MEGABLOCKS, "eager")
    changes = []
    for _, group in pairs.groupby(["num_experts", "top_k", "tokens", "dtype", "other"]):
        by_skew = group.sort_values("skew", kind="stable")
        first, last = by_skew.iloc[0], by_skew.iloc[-1]
        if last["skew"] > first["skew"]:
            changes.append({
                "gain": last["ratio"] / first["ratio"], "up": last["low"] > first["high"],
                "down": last["high"] < first["low"], "other": last["other"],
            })  # fmt: skip
    if not changes:
        raise NoEvidence("The skew study has no point timed at two skews", sources(frame, 0))
    change = pd.DataFrame(changes)
    up, down = int(change["up"].sum()), int(change["down"].sum())
    numbers = {"change": change, "up": up, "down": down, "same": len(change) - up - down}
    return Finding(
        Verdict.of(up == len(change), up > 0), numbers, sources(frame, rows_of(pairs)), (up, len(change)),
        (0, len(change) - up),
    )  # fmt: skip


@rule("routing-distribution-matters", figure="skew")
def routing_distribution_matters(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    rows = timed(frame[frame["implementation"] != LIMIT], "best")
    point = ["implementation", "num_experts", "top_k", "tokens", "dtype"]
    every, controlled = _spread(rows, point), _spread(rows, [*point, "active_experts"])
    if every.empty:
        raise NoEvidence("The skew study has no system timed at two skews", sources(frame, 0))
    hits = int(controlled["differs"].sum()) if len(controlled) else 0
    somewhere = hits > 0 if len(controlled) else every["differs"].any()
    verdict = Verdict.of(0 < hits == len(controlled), somewhere)
    latencies = ["p50_us", "p20_us", "p80_us"]
    of_limit = rows[rows["limit_us"].notna()].copy()
    of_limit[latencies] = of_limit[latencies].div(of_limit["limit_us"], axis=0)
    numbers = {
        "every": every, "differing": int(every["differs"].sum()), "controlled": controlled, "hits": hits,
        "of_limit": _spread(of_limit, point),
    }  # fmt: skip
    held = (hits, len(controlled)) if len(controlled) else None
    return Finding(verdict, numbers, sources(frame, len(rows)), held)


def _spread(rows: pd.DataFrame, point: list[str]) -> pd.DataFrame:
    """Per point with at least two skews: slowest over fastest latency, and whether they differ beyond the noise."""
    points = []
    for _, group in rows.groupby(point):
        if group["skew"].nunique() > 1:
            by_latency = fastest_first(group)
            fast, slow = by_latency.iloc[0], by_latency.iloc[-1]
            points.append({"spread": slow["p50_us"] / fast["p50_us"], "differs": slow["p20_us"] > fast["p80_us"]})
    return pd.DataFrame(points, columns=["spread", "differs"])
