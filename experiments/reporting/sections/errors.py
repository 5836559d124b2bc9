"""How far every system's output is from a float32 computation, beside PyTorch's own."""

from __future__ import annotations

from typing import Any

from ..accuracy import STUDIES, accuracy_table
from ..section import Material

TITLE, ORDER = "How right they are", 45


def content(material: Material) -> dict[str, Any] | None:
    table = accuracy_table({name: material.rows(name) for name in STUDIES})
    return {"table": table} if table else None
