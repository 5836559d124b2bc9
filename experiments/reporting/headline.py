"""The report's section on `fast` against the field: its table and its numbers, from the rows of the headline study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..analysis.compare import best_eager, panel_rows, panels, plain, ratios, timed
from ..analysis.headline import SHAKY, against_best, geometric_mean, peers, standing
from ..analysis.names import FAST, LIMIT, MEGABLOCKS, TILED, model_label
from ..table.limits import below_limit
from .tables import Table, latency_text, ratio_text, share_text
from .texts import NOISE_MARK, say

HEADER = [
    "model", "tokens", "skew", "dtype", "format", "gating", "GPU", f"{FAST}, µs", "share of the limit", "best peer",
    "its µs", f"{FAST} / best peer", "best Megablocks", f"{FAST} / best Megablocks",
]  # fmt: skip
OPTIONAL = ("format", "gating")
"""Columns that are left out where every row has the same."""
TEXT = ("model", "dtype", "format", "gating", "GPU", "best peer", "best Megablocks")


def field_sentences(frame: pd.DataFrame) -> list[str]:
    """Against the best peer, against the best Megablocks path, and where `fast` is not the fastest of all. Empty if
    there is no row of `fast`."""
    if frame.empty or timed(frame[frame["implementation"] == FAST], "best").empty:
        return []
    rows = plain(frame)
    best, paths = against_best(rows, peers(rows)), against_best(rows, list(MEGABLOCKS))
    eager = best_eager(ratios(rows, FAST, MEGABLOCKS, "eager"), rows, MEGABLOCKS)
    everyone = [str(name) for name in rows["implementation"].unique() if name not in (FAST, TILED, LIMIT)]
    of_all = against_best(rows, everyone)
    sentences = [
        say("field.j2", "over_best_peer", standing=standing(best)),
        say("field.j2", "by_model", means=_means(best)),
        say("field.j2", "over_megablocks", paths=standing(paths), eager=standing(eager)),
        say("field.j2", "fastest", of_all=len(of_all), lost=of_all[of_all["ratio"] < 1].to_dict("records")),
    ]
    return [sentence for sentence in sentences if sentence]


def native_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the models' own layers."""
    return frame if frame.empty else frame[frame["layer"] == "native"]


def native_sentence(frame: pd.DataFrame) -> str:
    """Where `fast` stands against the best peer on the models' own layers; empty if it has no row of one."""
    rows = native_rows(frame)
    if rows.empty or timed(rows[rows["implementation"] == FAST], "best").empty:
        return ""
    return say("field.j2", "over_best_peer", standing=standing(against_best(rows, peers(rows))))


def field_table(frames: Mapping[str, pd.DataFrame]) -> Table:
    """`fast`, its share of the measured limit, the best peer and the best Megablocks path, at each point of the rows of
    each GPU in plain 16 bits; each system in its best launch mode."""
    return _table({gpu: [plain(frame)] for gpu, frame in frames.items()})


def native_table(frames: Mapping[str, pd.DataFrame]) -> Table:
    """As `field_table`, of the models' own layers, in every weight format."""
    return _table({
        gpu: [part for _, part in native_rows(frame).groupby("quant")] for gpu, frame in frames.items() if len(frame)
    })  # fmt: skip


def _table(parts: Mapping[str, Sequence[pd.DataFrame]]) -> Table:
    """By GPU, the parts of its rows that are compared each in itself."""
    rows = [line for gpu, frames in parts.items() for frame in frames for line in _lines(gpu, frame)]
    told = [place for place, head in enumerate(HEADER) if head not in OPTIONAL or len({row[place] for row in rows}) > 1]
    if not any(row[-1] != "-" for row in rows):
        told = told[:-2]
    text = [place for place, kept in enumerate(told) if HEADER[kept] in TEXT]
    return Table("", [HEADER[place] for place in told], [[row[place] for place in told] for row in rows], text)


def _lines(gpu: str, rows: pd.DataFrame) -> list[list[str]]:
    best = _by_case(against_best(rows, peers(rows)))
    paths = _by_case(against_best(rows, list(MEGABLOCKS)))
    own = timed(rows[rows["implementation"] == FAST], "best")
    own = own.assign(below=below_limit(own)).sort_values(["tokens", "skew", "case_hash"], kind="stable")
    limits = rows[(rows["implementation"] == LIMIT) & (rows["status"] == "ok") & (rows["p50_us"] == rows["stream_us"])]
    shaky = set(limits.loc[limits["p80_us"] > SHAKY * limits["p20_us"], "case_hash"])
    quant = str(rows["quant"].iloc[0]) if "quant" in rows and len(rows) else "none"
    return [
        [
            model_label(model), str(row.tokens), f"{row.skew:g}", dtype, quant, gating, gpu, latency_text(row.p50_us),
            (NOISE_MARK if row.case_hash in shaky else "") + share_text(row),
            *_against(best.get(row.case_hash), latency=True), *_against(paths.get(row.case_hash)),
        ]
        for model, dtype, gating in panels(own)
        for row in _rows(panel_rows(own, (model, dtype, gating)))
    ]  # fmt: skip


def _rows(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples())


def _means(pairs: pd.DataFrame) -> dict[str, float]:
    """The geometric mean of the ratios by model."""
    return {str(model): geometric_mean(group["ratio"]) for model, group in pairs.groupby("model", sort=False)}


def _by_case(pairs: pd.DataFrame) -> dict[str, Any]:
    return {row.case_hash: row for row in _rows(pairs)}


def _against(pair: Any, latency: bool = False) -> Sequence[str]:
    """The other system, its latency if asked for, and the ratio."""
    if pair is None:
        return ["-"] * (3 if latency else 2)
    return [pair.other, *([latency_text(pair.p50_us_other)] if latency else []), ratio_text(pair)]
