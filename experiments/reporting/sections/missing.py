"""Rows without a timing, with their reasons: why a system is in no figure stands here once."""

from __future__ import annotations

from typing import Any

from ..section import Material
from ..tables import missing_table

TITLE, ORDER = "What is missing", 95


def content(material: Material) -> dict[str, Any]:
    return {"table": missing_table(material.frames)}
