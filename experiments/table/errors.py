"""The error of a system beside its time: over that of PyTorch's own computation with the same bits, and those bits."""

from __future__ import annotations

from typing import Any

import pandas as pd


def error_text(row: Any) -> str:
    """`1.02 a8`: the error over PyTorch's own with the activations named; empty for a row without either."""
    if pd.isna(row.rel_error) or pd.isna(row.torch_rel_error):
        return ""
    bits = getattr(row, "activations", None)
    ratio = f"{row.rel_error / row.torch_rel_error:.2f}"
    return ratio if bits is None or pd.isna(bits) else f"{ratio} {bits}"
