"""The report's section on `fast` against the field: its table and sentences, from the rows of the headline study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..analysis.compare import panels, plain, ratios, timed, to_best
from ..analysis.headline import FAST, SHAKY, against_best, counted, geometric_mean, peers
from ..analysis.names import model_label
from ..analysis.results import LIMIT
from ..claims.speed import MEGABLOCKS
from .tables import NOISE_MARK, Table, latency_text

HEADER = [
    "tokens", "skew", f"{FAST}, µs", "share of the limit", "best peer", "its µs", f"{FAST} / best peer",
    "best Megablocks", f"{FAST} / best Megablocks",
]  # fmt: skip


def field_sentences(frame: pd.DataFrame) -> list[str]:
    """Against the best peer, against the best Megablocks path, and where `fast` is not the fastest of all. Empty if
    there is no row of `fast`."""
    if frame.empty or timed(frame[frame["implementation"] == FAST], "best").empty:
        return []
    rows = plain(frame)
    best, paths = against_best(rows, peers(rows)), against_best(rows, list(MEGABLOCKS))
    sentences = [counted(best)]
    if len(best):
        each = ", ".join(
            f"{model_label(str(model))} {geometric_mean(group['ratio']):.2f}"
            for model, group in best.groupby("model", sort=False)
        )
        sentences.append(f"By model, the geometric mean over the best peer is: {each}.")
    if len(paths):
        sentences.append(
            f"Over the best Megablocks path, which cannot be in a CUDA graph and so takes as long as its host at few "
            f"tokens, it is {geometric_mean(paths['ratio']):.2f} ({paths['ratio'].min():.2f}–"
            f"{paths['ratio'].max():.2f}, {len(paths)} points){_eager(rows)}."
        )
    return [*sentences, _fastest(rows)]


def field_tables(frame: pd.DataFrame) -> list[Table]:
    """One table a model: `fast`, its share of the measured limit, the best peer and the best Megablocks path, at each
    batch size and skew, each system in its best launch mode."""
    if frame.empty:
        return []
    rows = plain(frame)
    best = _by_case(against_best(rows, peers(rows)))
    paths = _by_case(against_best(rows, list(MEGABLOCKS)))
    own = timed(rows[rows["implementation"] == FAST], "best").sort_values(["tokens", "skew"])
    limits = rows[(rows["implementation"] == LIMIT) & (rows["status"] == "ok") & (rows["p50_us"] == rows["stream_us"])]
    shaky = set(limits.loc[limits["p80_us"] > SHAKY * limits["p20_us"], "case_hash"])
    tables = []
    for model, dtype, gating in panels(own):
        body = [
            [
                str(row["tokens"]), f"{row['skew']:g}", latency_text(row["p50_us"]),
                f"{NOISE_MARK if row['case_hash'] in shaky else ''}{100 * row['limit_us'] / row['p50_us']:.0f} %",
                *_against(best.get(row["case_hash"]), latency=True), *_against(paths.get(row["case_hash"])),
            ]
            for _, row in own[own["model"] == model].iterrows()
        ]  # fmt: skip
        tables.append(Table(f"{FAST}: {model_label(model)}, {dtype}, {gating}", HEADER, body))
    return tables


def _by_case(pairs: pd.DataFrame) -> dict[str, Any]:
    return {str(row.case_hash): row for row in pairs.itertuples()}


def _against(pair: Any, latency: bool = False) -> Sequence[str]:
    """The peer, its latency if asked for, and the ratio."""
    if pair is None:
        return ["-"] * (3 if latency else 2)
    mark = NOISE_MARK if pair.low <= 1 <= pair.high else ""
    return [pair.peer, *([latency_text(pair.p50_us_peer)] if latency else []), f"{mark}{pair.ratio:.2f}"]


def _eager(rows: pd.DataFrame) -> str:
    """The same ratio, both launched from the host."""
    pairs = to_best(ratios(rows, FAST, MEGABLOCKS, "eager"))
    return f"; eager to eager {geometric_mean(pairs['ratio']):.2f}" if len(pairs) else ""


def _fastest(rows: pd.DataFrame) -> str:
    """At how many points `fast` has the smallest median of all systems, our own included, and which it has not."""
    others = [str(name) for name in rows["implementation"].unique() if name not in (FAST, LIMIT)]
    pairs = against_best(rows, others)
    lost = pairs[pairs["ratio"] < 1]
    sentence = f"Counting our other pipelines too, {FAST} has the smallest median at {len(pairs) - len(lost)} of "
    sentence += f"{len(pairs)} points"
    if lost.empty:
        return sentence + "."
    named = "; ".join(
        f"{model_label(str(row['model']))}, {row['tokens']} tokens, skew {row['skew']:g}: {row['peer']} "
        f"({'within the noise, ' if row['low'] <= 1 <= row['high'] else ''}{row['ratio']:.2f})"
        for _, row in lost.iterrows()
    )
    return f"{sentence}; not at {named}."
