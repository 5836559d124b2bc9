"""Few tokens on many small experts: how near `fast` comes to the reading of the weights."""

from __future__ import annotations

from typing import Any

from ..granular import granular_table
from ..section import Material

TITLE, ORDER = "Few tokens, many small experts", 23


def content(material: Material) -> dict[str, Any] | None:
    table = granular_table(material.rows("granular"))
    return {"table": table} if table else None
