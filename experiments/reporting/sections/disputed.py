"""Statements about kernels of other projects that public threads contradict each other on."""

from __future__ import annotations

from typing import Any

from .. import pictures
from ..section import Material

TITLE, ORDER = "Claims that the field disputes", 15


def content(material: Material) -> dict[str, Any] | None:
    drawn = set(pictures.drawn(material.figures / material.device))
    return {"claims": material.disputed, "drawn": drawn} if material.disputed else None
