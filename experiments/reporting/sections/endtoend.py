"""Whole models: how much of the gain of `fast` arrives in a decode step."""

from __future__ import annotations

from typing import Any

from ..endtoend import endtoend_tables
from ..section import Material

TITLE, ORDER = "Whole models", 35


def content(material: Material) -> dict[str, Any] | None:
    rows = material.rows("endtoend")
    if rows.empty:
        return None
    launches = sorted(rows.loc[rows["p50_us"].notna(), "launch"].unique())
    return {"models": endtoend_tables(rows), "launches": launches}
