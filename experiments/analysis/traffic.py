"""Sums of traffic rows: bytes of a forward by group of tensors, over the compulsory ones, and what fusing saves."""

from __future__ import annotations

import pandas as pd

from .names import PAPER, UNFUSED

TENSORS = {
    "weights": ("weights", "#dcdcdc", ""),
    "x": ("x", "#1b1b1b", ""),
    "permuted": ("permuted x", "#9ecae1", "////"),
    "gate": ("gate", "#fdd0a2", ""),
    "up": ("up", "#a63603", ""),
    "intermediate": ("SiLU(gate) x up", "#4a2c85", ""),
    "expert_out": ("expert outputs", "#41ab5d", "\\\\\\\\"),
    "output": ("y", "#f7f1c8", ""),
    "rest": ("routing, schedule", "#c51b7d", ""),
    "all": ("not told apart", "#efefef", "xx"),
}
"""Label, colour and hatch of each group of tensors, in the order in which they are stacked."""
ACCOUNTINGS = {
    "dram": "what DRAM moves, by hardware counters",
    "issued": "every access issued",
    "unique": "each address once a stage",
    "activations": "each address once a stage, without weights",
}
"""The first is of method counters alone, the others of the other methods."""
COUNTERS = "counters"
COLUMNS = {
    "dram": ("read_bytes", "write_bytes"),
    "issued": ("read_bytes", "write_bytes"),
    "unique": ("unique_read_bytes", "unique_write_bytes"),
    "activations": ("unique_read_bytes", "unique_write_bytes"),
}


def totals(rows: pd.DataFrame) -> pd.DataFrame:
    """What DRAM moved in each forward that the counters saw: its row of stage `total`, with `bytes`, read and written,
    and `over`, that over the compulsory bytes."""
    rows = rows[(rows["method"] == COUNTERS) & (rows["stage"] == "total") & (rows["status"] == "ok")]
    rows = rows.assign(bytes=rows["read_bytes"] + rows["write_bytes"])
    rows = rows[rows["bytes"].notna() & rows["min_bytes"].notna()]
    return rows.assign(over=rows["bytes"] / rows["min_bytes"])


def grouped(rows: pd.DataFrame, accounting: str) -> pd.Series:
    """Bytes, read and written, of each group of `TENSORS`, summed over the stages of one forward. Empty if not known.

    rows: of one case, pipeline and method; a method that sees no tensors has them all in the group ``all``.
    """
    columns = list(COLUMNS[accounting])
    rows = rows[(rows["method"] == COUNTERS) == (accounting == "dram")]
    rows = rows[(rows["status"] == "ok") & rows[columns].notna().all(axis=1)]
    stages = rows[rows["stage"] != "total"]
    rows = stages if len(stages) else rows
    sums = rows[columns].sum(axis=1).groupby(rows["tensor"].map(group)).sum()
    if accounting == "activations":
        # Activations are told from the rest only where tensors are told apart.
        sums = sums[[name for name in sums.index if name not in ("weights", "rest", "all")]]
    return sums.reindex([name for name in TENSORS if name in sums.index])


def group(tensor: str) -> str:
    """The group of a tensor of traffic.csv."""
    if tensor in TENSORS:
        return tensor
    return (
        "weights" if tensor == "router_weight" or (tensor.endswith("_weights") and tensor != "topk_weights") else "rest"
    )


def saving(rows: pd.DataFrame, accounting: str, pair: tuple[str, str] = (PAPER, UNFUSED)) -> float | None:
    """Share of the bytes of a pair's second, the unfused pipeline, that its first does not move; rows: of one case and
    method."""
    fused, unfused = (grouped(rows[rows["implementation"] == name], accounting).sum() for name in pair)
    return 1 - fused / unfused if fused and unfused else None


def savings(rows: pd.DataFrame, pair: tuple[str, str] = (PAPER, UNFUSED)) -> pd.DataFrame:
    """`saving` of every case and method that has both pipelines, by each accounting that it can tell.

    Columns: model, tokens, dtype, method, accounting, saving.
    """
    shares = []
    for (_, method), case in rows.groupby(["case_hash", "method"], sort=False):
        first = case.iloc[0]
        for accounting in ACCOUNTINGS:
            share = saving(case, accounting, pair)
            if share is not None:
                shares.append((first["model"], first["tokens"], first["dtype"], method, accounting, share))
    return pd.DataFrame(shares, columns=["model", "tokens", "dtype", "method", "accounting", "saving"])


def tokens_needed(saving: float, shape: pd.Series) -> float:
    """Tokens, spread evenly over the experts, at which fusing saves that share of all bytes, each address once a stage;
    infinite if at none. shape: hidden_dim, ffn_dim, num_experts and top_k.

    By the closed form. Per row and in units of hidden_dim, gate and up are written and read (4 ffn) and the permuted
    row is read a second time; the unfused pipeline also moves SiLU(gate) x up twice, the permuted row three times, the
    expert's output twice, and for each token x twice and y once. Weights are 3 x hidden x ffn per expert. Router,
    routing and schedule are left out: under 1 % at the shapes of real layers.
    """
    ratio = shape["ffn_dim"] / shape["hidden_dim"]
    gain = 4 * ratio + 1 - saving * (6 * ratio + 5 + 3 / shape["top_k"])
    rows = saving * 3 * ratio / gain * shape["hidden_dim"] if gain > 0 else float("inf")
    return float(rows * shape["num_experts"] / shape["top_k"])
