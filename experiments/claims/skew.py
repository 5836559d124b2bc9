"""Claims on load imbalance, decided by the skew study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence, compare, rows_text, span, timed
from .evidence import Evidence, rows_of
from .finding import Finding, Verdict, rule
from .speed import MEGABLOCKS, PAPER

EXTREME = 1.0
"""The paper names no exponent for its "extreme" skew: here everything steeper than Zipf's own law."""


@rule(
    "skew-regime",
    "Points: skew study, {experts_from} experts or more, Zipf exponent above " + f"{EXTREME:g}" + ", paper_fused "
    "against megablocks_sparse, eager. Holds if it is slower beyond the noise at each; in part if at some; does not "
    "hold if at none.",
    figure="skew_map",
)
def skew_regime(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    pairs = compare(frame, PAPER, ["megablocks_sparse"], "eager")
    regime = (pairs["num_experts"] >= figures["experts_from"]) & (pairs["skew"] > EXTREME)
    inside, outside = pairs[regime], pairs[~regime]
    if inside.empty:
        raise NoEvidence("The skew study has no timed point in this regime", rows_text(frame, 0))
    behind = int((inside["high"] < 1).sum())
    measured = f"ratio {span(inside['ratio'])} in the regime"
    elsewhere = ""
    if len(outside):
        measured += f", {span(outside['ratio'])} outside it"
        elsewhere = f", and behind at {int((outside['high'] < 1).sum())} of {len(outside)} points outside that regime"
    sentence = (
        f"With {figures['experts_from']} experts or more and skew above {EXTREME:g}, the fixed tiles are behind "
        f"megablocks_sparse at {behind} of {len(inside)} points{elsewhere}."
    )
    verdict = Verdict.of(behind == len(inside), behind > 0)
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), (behind, len(inside)))


@rule(
    "imbalance-gain",
    "Points: each expert count, batch size and Megablocks path of the skew study, eager. A point holds if the ratio "
    "of paper_fused to Megablocks at the largest skew is above that at the smallest, beyond the noise. Holds if all "
    "do; in part if some do; does not hold if none does.",
    figure="skew_map",
)
def imbalance_gain(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    pairs = compare(frame, PAPER, MEGABLOCKS, "eager")
    changes = []
    for _, group in pairs.groupby(["num_experts", "top_k", "tokens", "dtype", "peer"]):
        ordered = group.sort_values("skew")
        first, last = ordered.iloc[0], ordered.iloc[-1]
        if last["skew"] > first["skew"]:
            changes.append({
                "gain": last["ratio"] / first["ratio"], "up": last["low"] > first["high"],
                "down": last["high"] < first["low"], "peer": last["peer"],
            })  # fmt: skip
    if not changes:
        raise NoEvidence("The skew study has no point timed at two skews", rows_text(frame, 0))
    change = pd.DataFrame(changes)
    measured = "; ".join(f"{peer}: ratio x {span(group['gain'])}" for peer, group in change.groupby("peer"))
    up, down = int(change["up"].sum()), int(change["down"].sum())
    sentence = (
        f"From the smallest to the largest skew the ratio to Megablocks rises at {up} of {len(change)} points, falls "
        f"at {down} and stays the same within noise at {len(change) - up - down}."
    )
    verdict = Verdict.of(up == len(change), up > 0)
    return Finding(verdict, measured, sentence, rows_text(frame, rows_of(pairs)), (up, len(change)))


@rule(
    "routing-distribution-matters",
    "Points: each system, expert count and batch size of the skew study, in its best launch mode; one is controlled "
    "where at least two skews activate equally many experts. Holds if, at every controlled point, the latencies differ "
    "beyond the noise; in part if they differ at some, or only without that control; does not hold if nowhere.",
    figure="latency_vs_skew",
)
def routing_distribution_matters(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("skew")
    rows = timed(frame[frame["implementation"] != "stream"], "best")
    point = ["implementation", "num_experts", "top_k", "tokens", "dtype"]
    plain, controlled = _spread(rows, point), _spread(rows, [*point, "active_experts"])
    if plain.empty:
        raise NoEvidence("The skew study has no system timed at two skews", rows_text(frame, 0))
    hits = int(controlled["differs"].sum()) if len(controlled) else 0
    verdict = Verdict.of(0 < hits == len(controlled), hits > 0 or plain["differs"].any())
    measured = f"slowest / fastest skew: {span(plain['spread'])}"
    equal = "no point has equally many active experts at two skews"
    if len(controlled):
        measured += f", {span(controlled['spread'])} at equally many active experts"
        equal = f"at equally many active experts it does at {hits} of {len(controlled)} points"
    share = _spread(rows[rows["limit_us"].notna()].assign(**_shares(rows)), point)
    if len(share):
        measured += f"; share of the limit changes by x {span(share['spread'])}"
    sentence = (
        f"Skew changes the latency beyond the noise at {int(plain['differs'].sum())} of {len(plain)} points of system, "
        f"expert count and batch size; {equal}."
    )
    held = (hits, len(controlled)) if len(controlled) else None
    return Finding(verdict, measured, sentence, rows_text(frame, len(rows)), held)


def _shares(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Latencies in units of the measured limit of their own case."""
    return {name: rows[name] / rows["limit_us"] for name in ("p50_us", "p20_us", "p80_us")}


def _spread(rows: pd.DataFrame, point: list[str]) -> pd.DataFrame:
    """Per point with at least two skews: slowest over fastest latency, and whether they differ beyond the noise."""
    found = []
    for _, group in rows.groupby(point):
        if group["skew"].nunique() > 1:
            ordered = group.sort_values("p50_us")
            fast, slow = ordered.iloc[0], ordered.iloc[-1]
            found.append({"spread": slow["p50_us"] / fast["p50_us"], "differs": slow["p20_us"] > fast["p80_us"]})
    return pd.DataFrame(found, columns=["spread", "differs"])
