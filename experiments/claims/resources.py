"""Claims on what a forward takes beside time: memory traffic, kernel launches, workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis.compare import no_pairs, rows_text, span
from ..analysis.traffic import ACCOUNTINGS, savings
from ..workload.config import PAPER_MODELS
from .evidence import Evidence
from .finding import Finding, Verdict, rule
from .speed import MEGABLOCKS, PAPER, UNFUSED

LOOP = "torch_loop"
MEASURED = "dram"
COUNTED = ("issued", "unique")
"""Accountings of all tensors that decide where no hardware counters were read."""


@rule(
    "memory-traffic",
    "Points: the paper's three models, every batch size and dtype with traffic of both pipelines, by each accounting: "
    "what DRAM moves, by hardware counters; and by model and interpreter every access issued, each address once a "
    "stage, and the latter without the weights. The counters decide; where none were read, the next two do. Holds if "
    "1 - fused / unfused is at least {saving} at each deciding point; in part if it is at some point of any "
    "accounting; does not hold if at none. Other shapes are shown and do not decide.",
    figure="traffic",
)
def memory_traffic(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("traffic")
    rows = frame[frame["implementation"].isin([PAPER, UNFUSED])]
    found = savings(rows)
    found["reached"] = found["saving"] >= figures["saving"]
    points = found[found["model"].isin(PAPER_MODELS)]
    measured = points[points["accounting"] == MEASURED]
    deciding = measured if len(measured) else points[points["accounting"].isin(COUNTED)]
    if deciding.empty:
        raise no_pairs(rows[rows["model"].isin(PAPER_MODELS)], [PAPER, UNFUSED])
    # A method that has no row of the paper's models is shown on the shapes that it has.
    elsewhere = found[~found["method"].isin(points["method"])]
    shown = pd.concat([points.assign(shape="the paper's models"), elsewhere.assign(shape=elsewhere["model"])])
    text = "; ".join(
        f"{method} on {shape}: "
        + ", ".join(
            f"{span(100 * part['saving'], 0)} % of {ACCOUNTINGS[str(name)]}"
            for name, part in group.groupby("accounting", sort=False)
        )
        for (method, shape), group in shown.groupby(["method", "shape"], sort=False)
    )
    sentence = f"Fusing gate and up saves {100 * figures['saving']:.0f} % of the bytes or more at " + "; ".join(
        _reached(points[points["accounting"] == name], ACCOUNTINGS[name])
        for name in ACCOUNTINGS
        if (points["accounting"] == name).any()
    )
    verdict = Verdict.of(deciding["reached"].all(), points["reached"].any())
    held = int(deciding["reached"].sum()), len(deciding)
    return Finding(verdict, text, sentence + ".", rows_text(frame, int(rows["model"].isin(PAPER_MODELS).sum())), held)


def _reached(points: pd.DataFrame, accounting: str) -> str:
    """At how many points an accounting reaches the share, at which models and tokens, and the most that it saves."""
    reached = points[points["reached"]]
    text = f"{len(reached)} of {len(points)} points counting {accounting}"
    if len(reached):
        where = (f"{model}, tokens={_tokens(group['tokens'])}" for model, group in reached.groupby("model", sort=False))
        return f"{text} ({'; '.join(where)})"
    best = points.sort_values("saving").iloc[-1]
    return f"{text} (the most: {100 * best['saving']:.0f} % on {best['model']}, tokens={best['tokens']})"


def _tokens(counts: pd.Series) -> str:
    least, most = counts.min(), counts.max()
    return f"{least}" if least == most else f"{least} to {most}"


@rule(
    "launches",
    "Every point of the throughput study where the profiler counted. Holds if paper_fused takes {fused} launches and "
    "paper_unfused {unfused} at each and torch_loop at least {loop} at some; in part if one or two of the three are "
    "so; does not hold if none is.",
)
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
        LOOP: len(counts[LOOP]) > 0 and bool((counts[LOOP] >= figures["loop"]).any()),
    }
    shown = {name: span(values, 0) if len(values) else "not counted" for name, values in counts.items()}
    sentence = "; ".join(
        f"{name} takes {shown[name]} launches, published {published}{'' if as_published[name] else ' (differs)'}"
        for name, published in zip(as_published, (figures["fused"], figures["unfused"], f"{figures['loop']}+"))
    )
    deciding = sum(len(values) for values in counts.values())
    measured = ", ".join(f"{name} {text}" for name, text in shown.items())
    return Finding(
        Verdict.of(all(as_published.values()), any(as_published.values())),
        measured,
        sentence + ".",
        rows_text(frame, deciding),
        (sum(as_published.values()), len(as_published)),
    )


@rule(
    "workspace",
    "Every point of the throughput study with workspace_bytes of paper_fused and of a Megablocks path. Holds if "
    "paper_fused takes less memory at each; in part if at some; does not hold if at none.",
)
def workspace(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("throughput")
    known = frame[(frame["status"] == "ok") & frame["workspace_bytes"].notna()]
    known = known.drop_duplicates(["case_hash", "implementation"])
    own = known.loc[known["implementation"] == PAPER, ["case_hash", "workspace_bytes"]]
    pairs = own.merge(known[known["implementation"].isin(MEGABLOCKS)], on="case_hash", suffixes=("_own", ""))
    if pairs.empty:
        raise no_pairs(frame, [PAPER, *MEGABLOCKS])
    pairs["share"] = pairs["workspace_bytes_own"] / pairs["workspace_bytes"]
    less = int((pairs["share"] < 1).sum())
    measured = "; ".join(f"{path}: {span(group['share'])} x" for path, group in pairs.groupby("implementation"))
    sentence = (
        f"paper_fused takes less memory than Megablocks at {less} of {len(pairs)} points, {span(pairs['share'])} times "
        "its workspace."
    )
    deciding = pairs["case_hash"].nunique() + len(pairs)
    verdict = Verdict.of(less == len(pairs), less > 0)
    return Finding(verdict, measured, sentence, rows_text(frame, deciding), (less, len(pairs)))
