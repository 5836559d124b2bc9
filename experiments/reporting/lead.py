"""How far `fast` is ahead of the best other system: the table and the numbers of the report's first screen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from ..analysis.compare import best_eager, plain, ratios, timed
from ..analysis.headline import Standing, against_best, peers, standing, timed_peers
from ..analysis.names import FAST, INVARIANT, TILED, label_of, model_label, models_in_order
from ..analysis.noise import percents
from ..table.card_speed import CARD_US
from .tables import Table

TIE = "tie"


def standings(frame: pd.DataFrame) -> dict[str, Any]:
    """Of the headline study's rows: `every` point, those of `several` tokens, and `eager` to eager, each a `Standing`
    or None; the `noise` of each, in per cent; `reads`, the fixed read in us on the cards of both sides; `invariant`,
    the latency of the batch-invariant mode over that of `fast` at each point, empty without; `tiled` and
    `tiled_several`, as `every` and `several` with tiled weights; `tiled_gain`, the speed with them over that of `fast`
    at each point; `tiled_sure` and `tiled_worse`, at how many it is larger and smaller beyond the noise. Empty if there
    is no row of `fast`."""
    if frame.empty or timed(frame[frame["implementation"] == FAST], "best").empty:
        return {}
    rows = plain(frame)
    best, tiled = (against_best(rows, peers(rows), ours) for ours in (FAST, TILED))
    gain = ratios(rows, TILED, [FAST], "best")
    return {
        "every": standing(best),
        "several": standing(best[best["tokens"] > 1]),
        "eager": eager(frame),
        "noise": percents(best),
        "reads": reads_of(best),
        "invariant": ratios(rows, FAST, [INVARIANT], "best")["ratio"],
        "tiled": standing(tiled),
        "tiled_several": standing(tiled[tiled["tokens"] > 1]),
        "tiled_gain": gain["ratio"],
        "tiled_sure": int((gain["low"] > 1).sum()),
        "tiled_worse": int((gain["high"] < 1).sum()),
    }


def reads_of(pairs: pd.DataFrame) -> pd.Series:
    """What the fixed read takes on the cards of the rows of `against_best`, in us; empty where no process tells it."""
    found = [pairs[name].astype(float) for name in (CARD_US, f"{CARD_US}_other") if name in pairs]
    return pd.concat(found).dropna() if found else pd.Series(dtype=float)


def eager(frame: pd.DataFrame) -> Standing | None:
    """How `fast` stands with everything launched eagerly, in the dtype of most rows; None without a comparison."""
    if frame.empty:
        return None
    rows = plain(frame)
    rows = rows[rows["dtype"] == rows["dtype"].mode().iloc[0]]
    return standing(best_eager(ratios(rows, FAST, peers(rows), "eager"), rows, peers(rows)))


def as_served(quant: pd.DataFrame, native: pd.DataFrame, shards: pd.DataFrame) -> dict[str, tuple[Standing, list[str]]]:
    """How `fast` stands, and beside whom, on plain layers of packed weights, on the models' own layers in 16 bits and
    packed, and on one GPU's shards of layers, by what they are called; what was not timed beside another system is left
    out."""
    parts: dict[str, pd.DataFrame] = {}
    for frame, layers in ((plain(quant, formats=True) if len(quant) else quant, "plain"), (native, "own")):
        for name, part in frame.groupby("quant") if len(frame) else ():
            if layers == "own" or name != "none":
                weights = "16 bits" if name == "none" else str(name)
                parts[f"{weights}, {layers} layers"] = part
    if len(shards):
        parts["16 bits, a GPU's shard (tp, ep)"] = plain(shards)
    found = {name: (standing(against_best(rows, peers(rows))), timed_peers(rows)) for name, rows in parts.items()}
    return {name: (stands, others) for name, (stands, others) in found.items() if stands}


def lead_table(frame: pd.DataFrame) -> Table | None:
    """A row for each batch size and a column for each model: by how much `fast` is ahead, from the least to the most of
    its skews, and which systems were the best other ones there. None without a comparison."""
    if frame.empty:
        return None
    rows = plain(frame)
    best = against_best(rows, peers(rows))
    if best.empty:
        return None
    models = models_in_order(best["model"])
    table = Table("", ["tokens", *map(model_label, models), "the best other system"], text=(len(models) + 1,))
    for tokens, group in best.groupby("tokens"):
        cells = [_cell(group[group["model"] == model]) for model in models]
        others = Counter(map(label_of, group["other"])).most_common()
        table.rows.append([str(tokens), *cells, ", ".join(f"{name} {count}" for name, count in sorted(
            others, key=lambda item: (-item[1], item[0])))])  # fmt: skip
    return table


def _cell(pairs: pd.DataFrame) -> str:
    ordered = pairs.sort_values("ratio", kind="stable")
    texts = list(dict.fromkeys(_lead(row) for row in ordered.itertuples()))
    texts.sort(key=lambda text: text != TIE)  # of a larger lead too, where the noise is larger
    if len(texts) < 2:
        return "".join(texts) or "-"
    first, last = texts[0], texts[-1]
    return f"{first.removesuffix(' %')} to {last}"


def _lead(pair: Any) -> str:
    return TIE if pair.low <= 1 <= pair.high else f"{100 * (pair.ratio - 1):+.0f} %"
