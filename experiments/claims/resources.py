"""Claims on what a forward takes beside time: memory traffic, kernel launches, workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ...plots.traffic_data import ACCOUNTINGS, saving
from .evidence import Evidence, no_pairs, rows_text, span
from .finding import Finding, Verdict, rule
from .speed import MEGABLOCKS, PAPER, PAPER_MODELS, UNFUSED

LOOP = "torch_loop"
WITHOUT_WEIGHTS = "activations"


@rule(
    "memory-traffic",
    "Points: the paper's three models, every batch size and dtype with traffic of both pipelines, by each method "
    "(model, interpreter, counters) and accounting: every access issued, each address once a stage, and the latter "
    "without the weights. Holds if 1 - fused / unfused is at least {saving} at each point of the first two; in part if "
    "it is at some point of any; does not hold if at none. Other shapes are shown and do not decide.",
    figure="traffic",
)
def memory_traffic(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("traffic")
    rows = frame[frame["implementation"].isin([PAPER, UNFUSED])]
    found = _savings(rows)
    found["reached"] = found["saving"] >= figures["saving"]
    deciding = found[found["model"].isin(PAPER_MODELS)]
    whole = deciding[deciding["accounting"] != WITHOUT_WEIGHTS]
    if whole.empty:
        raise no_pairs(rows[rows["model"].isin(PAPER_MODELS)], [PAPER, UNFUSED])
    # A method that has no row of the paper's models is shown on the shapes that it has.
    elsewhere = found[~found["method"].isin(deciding["method"])]
    shown = pd.concat([deciding.assign(shape="the paper's models"), elsewhere.assign(shape=elsewhere["model"])])
    measured = "; ".join(
        f"{method} on {shape}: "
        + ", ".join(
            f"{span(100 * part['saving'], 0)} % of {ACCOUNTINGS[str(name)]}"
            for name, part in group.groupby("accounting", sort=False)
        )
        for (method, shape), group in shown.groupby(["method", "shape"], sort=False)
    )
    counts = ", ".join(
        f"{int(part['reached'].sum())} of {len(part)} points counting {ACCOUNTINGS[str(name)]}"
        for name, part in deciding.groupby("accounting", sort=False)
    )
    sentence = f"Fusing gate and up saves {100 * figures['saving']:.0f} % of the bytes or more at {counts}."
    verdict = Verdict.of(whole["reached"].all(), deciding["reached"].any())
    return Finding(verdict, measured, sentence, rows_text(frame, int(rows["model"].isin(PAPER_MODELS).sum())))


def _savings(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns model, method, accounting and saving: 1 - fused / unfused bytes of a forward, for each point."""
    found = []
    for (_, method), group in rows.groupby(["case_hash", "method"], sort=False):
        for accounting in ACCOUNTINGS:
            share = saving(group, accounting)
            if share is not None:
                found.append((group["model"].iloc[0], method, accounting, share))
    return pd.DataFrame(found, columns=["model", "method", "accounting", "saving"])


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
    return Finding(Verdict.of(less == len(pairs), less > 0), measured, sentence, rows_text(frame, deciding))
