"""The report's section on whole models: how much of the gain of `fast` arrives in a decode step."""

from __future__ import annotations

import pandas as pd

from ..analysis.compare import timed
from ..analysis.endtoend import gains
from ..analysis.names import FAST, in_order, label_of, model_label, models_in_order
from .tables import Table

GAIN = [f"{FAST}, ms a step", "its peak memory, GB", "that of the other", "experts alone", "whole step",
        "experts' share of its step"]  # fmt: skip


def endtoend_tables(frame: pd.DataFrame) -> list[Table]:
    """One table for each whole model: tokens per second of each system at each batch, and what `fast` gains over the
    fastest of the others."""
    if frame.empty:
        return []
    best, gained = timed(frame, "best"), gains(frame)
    tables = []
    for model in models_in_order(best["model"]):
        rows = best[best["model"] == model]
        systems = in_order(rows["implementation"])
        rates = rows.pivot(index="tokens", columns="implementation", values="tokens_per_s")
        gain = {row["tokens"]: row for _, row in gained[gained["model"] == model].iterrows()}
        body = []
        for tokens, each in rates.sort_index().iterrows():
            cells = [f"{each[name]:.0f}" if pd.notna(each[name]) else "-" for name in systems]
            if tokens in gain:
                one = gain[tokens]
                cells += [label_of(one["other"]), f"{one['p50_us'] / 1e3:.2f}", f"{one['peak_bytes'] / 1e9:.1f}",
                          f"{one['peak_bytes_other'] / 1e9:.1f}", f"{one['alone']:.2f}", f"{one['step']:.2f}",
                          f"{100 * one['experts_share']:.0f} %"]  # fmt: skip
            else:
                cells += ["-"] * (1 + len(GAIN))
            body.append([str(tokens), *cells])
        header = ["batch", *(f"{label_of(name)}, tokens/s" for name in systems), f"fastest but {FAST}", *GAIN]
        tables.append(Table(model_label(model), header, body, text=(1 + len(systems),)))
    return tables
