"""Claims on what a forward takes beside time: memory traffic, kernel launches, workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .evidence import POINT, Evidence, no_pairs, rows_text, span
from .finding import Finding, Verdict, rule
from .speed import MEGABLOCKS, PAPER, PAPER_MODELS, UNFUSED

LOOP = "torch_loop"
WHOLE_FORWARD = "total"
COUNTS = {"unique": ("unique_read_bytes", "unique_write_bytes"), "issued": ("read_bytes", "write_bytes")}


@rule(
    "memory-traffic",
    "Points: the paper's three models, every batch size and dtype with traffic of both pipelines, by each method "
    "(model, interpreter, counters), each byte once a kernel (unique) and as often as it is asked for (issued), with "
    "the weights and without. Holds if 1 - fused / unfused is at least {saving} at each point with the weights; in "
    "part if it is at some point, with them or without; does not hold if at none. Other shapes are shown and do not "
    "decide.",
    figure="traffic",
)
def memory_traffic(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.study("traffic")
    ok = frame[(frame["status"] == "ok") & frame["implementation"].isin([PAPER, UNFUSED])]
    savings = pd.concat(
        [_savings(ok, count, weights=weights) for count in COUNTS for weights in (True, False)], ignore_index=True
    )
    deciding = savings[savings["model"].isin(PAPER_MODELS)]
    if not deciding["weights"].any():
        raise no_pairs(frame[frame["model"].isin(PAPER_MODELS)], [PAPER, UNFUSED])
    reached = deciding["saving"] >= figures["saving"]
    verdict = Verdict.of(reached[deciding["weights"]].all(), reached.any())
    # A method that has no row of the paper's models is shown on the shapes that it has.
    elsewhere = savings[~savings["method"].isin(deciding["method"])]
    shown = pd.concat([deciding.assign(shape="the paper's models"), elsewhere.assign(shape=elsewhere["model"])])
    measured = "; ".join(
        f"{method} on {shape}, {count}: "
        + " and ".join(
            f"{span(100 * part['saving'], 0)} % {_accounting(weights)}"
            for weights, part in sorted(group.groupby("weights"), reverse=True)
        )
        for (shape, method, count), group in shown.groupby(["shape", "method", "count"], sort=False)
    )
    counts = " and at ".join(
        f"{int(reached[group.index].sum())} of {len(group)} points {_accounting(weights)}"
        for weights, group in sorted(deciding.groupby("weights"), reverse=True)
    )
    sentence = f"Fusing gate and up saves {100 * figures['saving']:.0f} % of the bytes or more at {counts}."
    used = int(ok["model"].isin(PAPER_MODELS).sum())
    return Finding(verdict, measured, sentence, rows_text(frame, used))


def _savings(ok: pd.DataFrame, count: str, *, weights: bool) -> pd.DataFrame:
    """1 - fused / unfused bytes, read and written, of the whole forward, per point and method that counts so."""
    read, write = COUNTS[count]
    rows = ok[ok[read].notna() & ok[write].notna()]
    if weights:
        rows = rows[rows["stage"] == WHOLE_FORWARD]
    else:
        rows = rows[(rows["stage"] != WHOLE_FORWARD) & ~rows["tensor"].astype(str).str.contains("weight")]
    rows = rows.assign(bytes=rows[read] + rows[write])
    table = rows.pivot_table(index=[*POINT, "method"], columns="implementation", values="bytes", aggfunc="sum")
    table = table.reindex(columns=[PAPER, UNFUSED]).dropna()
    saving = (1 - table[PAPER] / table[UNFUSED]).rename("saving").reset_index()
    return saving.assign(count=count, weights=weights)


def _accounting(weights: bool) -> str:
    return "with the weights" if weights else "without them"


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
