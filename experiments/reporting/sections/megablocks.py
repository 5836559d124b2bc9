"""The paper's pipeline over each Megablocks path, beside the published ratios."""

from __future__ import annotations

from typing import Any

from ..section import Material
from ..tables import ratio_table

TITLE, ORDER = "Ratio to Megablocks", 30


def content(material: Material) -> dict[str, Any] | None:
    rows = material.rows("throughput")
    return None if rows.empty else {"table": ratio_table(rows)}
