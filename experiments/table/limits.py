"""The measured limit of each row, joined when rows are read: so `stream` may run before the others or after them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from .card_speed import CARD_US, slower

LIMIT = "stream"
"""The system that only reads the active experts' weights: its time is the limit of all others."""


BELOW_MARK = "‼"
"""Marks a latency below the measured limit, in tables and figures."""


def with_limits(rows: pd.DataFrame, matrix_tflops: Mapping[str, float]) -> pd.DataFrame:
    """The rows with `stream_us` and `limit_us`, those that are written where `stream` has no other latency now.

    stream_us: latency of `stream` for the case in the same run, in a graph rather than eager, on a card as fast as that
    of the row (`card_speed`). limit_us: the larger of
    that and the time of the arithmetic. matrix_tflops: by dtype, and by weight format where the GPU multiplies it as it
    is, the matrix rate that the run measured.
    """
    if rows.empty:
        return rows
    stream = rows[(rows["implementation"] == LIMIT) & (rows["status"] == "ok") & rows["p50_us"].notna()]
    stream = stream.sort_values("launch", ascending=False, kind="stable").drop_duplicates(["run_id", "case_hash"])
    point = ["run_id", "case_hash"]
    card = [CARD_US] if CARD_US in rows else []
    both = rows[[*point, *card]].merge(stream[[*point, "p50_us", *card]], on=point, how="left", suffixes=("", "_other"))
    measured = (both["p50_us"] * slower(both)).set_axis(rows.index)
    written = _column(rows, "stream_us")
    stream_us = measured.fillna(written)
    rates = dict(matrix_tflops)
    rate = rows["dtype"].map(rates).astype(float)
    if "quant" in rows:
        rate = rows["quant"].map(rates).astype(float).fillna(rate)
    arithmetic_us = rows["flops"] / rate / 1e6
    limit_us = stream_us.where(~(arithmetic_us > stream_us), arithmetic_us)
    kept = _column(rows, "limit_us").where(measured.isna() | (measured == written))
    return rows.assign(stream_us=stream_us, limit_us=kept.fillna(limit_us))


def below_limit(rows: pd.DataFrame) -> pd.Series:
    """Whether a latency is below the measured limit of its case, beyond the noise: even its p80 is.

    Nothing can be faster than reading what it must read, so such a row is to be looked into: work was left out, the
    weights were not cold, or the limit was timed on a slower clock. The limit itself, and rows without one, are not.
    """
    if "limit_us" not in rows:
        return pd.Series(False, index=rows.index)
    return rows["limit_us"].notna() & (rows["p80_us"] < rows["limit_us"]) & (rows["implementation"] != LIMIT)


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name].astype(float) if name in rows else pd.Series(float("nan"), index=rows.index)
