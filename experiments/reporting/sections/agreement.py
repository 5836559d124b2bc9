"""Whether the systems stand in the order of an earlier, separate measurement."""

from __future__ import annotations

from typing import Any

from .. import agreement
from ..section import Material

TITLE, ORDER = "An earlier measurement", 55


def content(material: Material) -> dict[str, Any] | None:
    frames = {name: material.frames[name] for name in agreement.STUDIES if name in material.frames}
    sentences = agreement.sentences(material.device, frames)
    return {"sentences": sentences} if sentences else None
