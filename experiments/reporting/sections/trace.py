"""Where the time of a forward goes beyond the reading of its weights, kernel by kernel."""

from __future__ import annotations

from typing import Any

from ...measure.trace import APART
from ..section import Material
from ..trace import APART_MARK, trace_table

TITLE, ORDER = "Where the time goes", 24


def content(material: Material) -> dict[str, Any] | None:
    table = trace_table(material.rows("trace"))
    return {"table": table, "mark": APART_MARK, "apart": 100 * APART} if table else None
