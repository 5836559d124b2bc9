"""The report's table of the study `granular`: how near `fast` comes to the reading of the weights, shape by shape."""

from __future__ import annotations

import pandas as pd

from ..analysis.compare import plain, timed
from ..analysis.headline import against_best, geometric_mean, peers, standing
from ..analysis.names import FAST, TILED, model_label, models_in_order
from .tables import Table


def granular_table(frame: pd.DataFrame) -> Table | None:
    """A line for each shape and weight format, tiled weights apart: the reading and what `fast` takes beyond it at one
    token without skew, its latency over the reading at each skew (geometric mean over the tokens), and how it stands
    against the best other system of each point. None without a row of ours that has a measured limit."""
    if frame.empty:
        return None
    rows = plain(frame, formats=True)
    own = timed(rows[rows["implementation"].isin([FAST, TILED])], "best").dropna(subset="stream_us")
    if own.empty:
        return None
    own = own.assign(over=own["p50_us"] / own["stream_us"])
    skews = sorted(own["skew"].unique())
    best = {ours: against_best(rows, peers(rows), ours) for ours in (FAST, TILED)}
    over = [f"{FAST} / reading, skew {skew:g}" for skew in skews]
    header = ["layer", "format", "reading at 1 token, µs", f"{FAST} beyond it, µs", *over, f"{FAST} / best peer",
              "ahead, tied, behind"]  # fmt: skip
    table = Table("", header, text=(0, 1))
    models = models_in_order(own["model"])
    layers = set(zip(own["quant"] != "none", own["model"], own["quant"], own["implementation"]))
    for packed, model, quant, ours in sorted(layers, key=lambda key: (key[0], models.index(key[1]), *key[2:])):
        here = own[(own["model"] == model) & (own["quant"] == quant) & (own["implementation"] == ours)]
        by_skew = [here.loc[here["skew"] == skew, "over"] for skew in skews]
        pairs = best[ours]
        stands = standing(pairs[(pairs["model"] == model) & (pairs["quant"] == quant)])
        weights = quant if packed else "16 bits" if ours == FAST else "16 bits, tiled"
        table.rows.append([
            model_label(model), weights, *_one_token(here),
            *(f"{geometric_mean(ratios):.2f}" if len(ratios) else "-" for ratios in by_skew),
            *([f"{stands.mean:.2f}", f"{stands.ahead}, {stands.same}, {stands.behind}"] if stands else ["-", "-"]),
        ])  # fmt: skip
    return table


def _one_token(rows: pd.DataFrame) -> list[str]:
    one = rows[(rows["tokens"] == 1) & (rows["skew"] == 0)]
    if one.empty:
        return ["-", "-"]
    first = one.iloc[0]
    return [f"{first['stream_us']:.1f}", f"{first['p50_us'] - first['stream_us']:.1f}"]
