"""Traffic rows as the two traffic figures need them: bytes of the two pipelines, by group of tensors."""

from __future__ import annotations

import pandas as pd

FUSED, UNFUSED = "paper_fused", "paper_unfused"
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
    "issued": "every access issued",
    "unique": "each address once a stage",
    "activations": "each address once a stage, without weights",
}
COLUMNS = {"issued": ("read_bytes", "write_bytes"), "unique": ("unique_read_bytes", "unique_write_bytes")}


def grouped(rows: pd.DataFrame, accounting: str) -> pd.Series:
    """Bytes, read and written, of each group of `TENSORS`, summed over the stages of one forward. Empty if not known.

    rows: of one case, pipeline and method; a method that sees no tensors has the stage `total` alone, group ``all``.
    """
    columns = list(COLUMNS["issued" if accounting == "issued" else "unique"])
    rows = rows[(rows["status"] == "ok") & rows[columns].notna().all(axis=1)]
    stages = rows[rows["stage"] != "total"]
    rows = stages if len(stages) else rows
    totals = rows[columns].sum(axis=1).groupby(rows["tensor"].map(group)).sum()
    if accounting == "activations":
        # Activations are told from the rest only where tensors are told apart.
        totals = totals[[name for name in totals.index if name not in ("weights", "rest", "all")]]
    return totals.reindex([name for name in TENSORS if name in totals.index])


def group(tensor: str) -> str:
    """The group of a tensor of traffic.csv."""
    if tensor in TENSORS:
        return tensor
    return (
        "weights" if tensor == "router_weight" or (tensor.endswith("_weights") and tensor != "topk_weights") else "rest"
    )


def saving(rows: pd.DataFrame, accounting: str) -> float | None:
    """Share of the unfused pipeline's bytes that the fused one does not move, of the rows of one case and method."""
    fused, unfused = (grouped(rows[rows["implementation"] == name], accounting).sum() for name in (FUSED, UNFUSED))
    return 1 - fused / unfused if fused and unfused else None
