"""Claims on what a forward takes beside time: memory traffic, kernel launches, workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import no_pairs, sources
from ..analysis.names import LOOP, MEGABLOCKS, PAPER, UNFUSED
from ..analysis.traffic import ACCOUNTINGS, savings
from ..workload.config import PAPER_MODELS
from .evidence import Evidence
from .finding import Finding, Verdict, rule

MEASURED = "dram"
COUNTED = ("issued", "unique")
"""Accountings of all tensors that decide where no hardware counters were read."""


@rule("memory-traffic", figure="traffic", of_paper_code=True)
def memory_traffic(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("traffic")
    rows = frame[frame["implementation"].isin([PAPER, UNFUSED])]
    table = savings(rows)
    table["reached"] = table["saving"] >= figures["saving"]
    points = table[table["model"].isin(PAPER_MODELS)]
    measured = points[points["accounting"] == MEASURED]
    deciding = measured if len(measured) else points[points["accounting"].isin(COUNTED)]
    if deciding.empty:
        raise no_pairs(rows[rows["model"].isin(PAPER_MODELS)], [PAPER, UNFUSED])
    # A method that has no row of the paper's models is shown on the shapes that it has.
    elsewhere = table[~table["method"].isin(points["method"])]
    numbers = {
        "deciding": deciding,
        "shown": pd.concat([points.assign(shape="the paper's models"), elsewhere.assign(shape=elsewhere["model"])]),
        "accountings": [_reached(points[points["accounting"] == name], name) for name in ACCOUNTINGS
                        if (points["accounting"] == name).any()],
    }  # fmt: skip
    verdict = Verdict.of(deciding["reached"].all(), deciding["reached"].any())
    reached = int(deciding["reached"].sum())
    from_rows = sources(frame, int(rows["model"].isin(PAPER_MODELS).sum()))
    return Finding(verdict, numbers, from_rows, (reached, len(deciding)), (0, len(deciding) - reached))


def _reached(points: pd.DataFrame, accounting: str) -> dict[str, Any]:
    """What fusing saves by one accounting: at how many of the points (`count`) the claimed share is reached
    (`reached`, one row per point), and the point at which it saves the most."""
    most = points.sort_values(["saving", "model", "tokens"], ascending=[False, True, True], kind="stable").iloc[0]
    return {"name": accounting, "count": len(points), "reached": points[points["reached"]], "most": most}


@rule("launches", of_paper_code=True)
def launches(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    counted = frame[(frame["status"] == "ok") & frame["kernel_launches"].notna()]
    counts = {
        name: counted.loc[counted["implementation"] == name, "kernel_launches"] for name in (PAPER, UNFUSED, LOOP)
    }
    if any(counts[name].empty for name in (PAPER, UNFUSED)):
        raise no_pairs(frame, [PAPER, UNFUSED])
    as_published = {
        PAPER: bool((counts[PAPER] == figures["fused"]).all()),
        UNFUSED: bool((counts[UNFUSED] == figures["unfused"]).all()),
    }
    if len(counts[LOOP]):
        as_published[LOOP] = bool((counts[LOOP] >= figures["loop"]).any())
    published = dict(zip(counts, (figures["fused"], figures["unfused"], figures["loop"])))
    numbers = {"counts": counts, "published": published, "as_published": as_published}
    deciding = sources(frame, sum(len(values) for values in counts.values()))
    every = len(as_published) == len(counts) and all(as_published.values())
    verdict = Verdict.of(every, any(as_published.values()))
    return Finding(verdict, numbers, deciding, (sum(as_published.values()), len(as_published)))


@rule("workspace", of_paper_code=True)
def workspace(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    known = frame[(frame["status"] == "ok") & frame["workspace_bytes"].notna()]
    known = known.drop_duplicates(["case_hash", "implementation"])
    own = known.loc[known["implementation"] == PAPER, ["case_hash", "workspace_bytes"]]
    pairs = own.merge(known[known["implementation"].isin(MEGABLOCKS)], on="case_hash", suffixes=("_own", ""))
    if pairs.empty:
        raise no_pairs(frame, [PAPER, *MEGABLOCKS])
    pairs = pairs.rename(columns={"implementation": "other"})
    pairs["share"] = pairs["workspace_bytes_own"] / pairs["workspace_bytes"]
    less = int((pairs["share"] < 1).sum())
    deciding = sources(frame, pairs["case_hash"].nunique() + len(pairs))
    return Finding(
        Verdict.of(less == len(pairs), less > 0), {"pairs": pairs, "less": less}, deciding, (less, len(pairs)),
        (0, len(pairs) - less),
    )  # fmt: skip
