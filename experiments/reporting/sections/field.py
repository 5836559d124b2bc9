"""`fast` against the best other system and the best Megablocks path, point by point."""

from __future__ import annotations

from typing import Any

from .. import headline, sustained
from ..section import Material

TITLE, ORDER = "fast against the field", 20


def content(material: Material) -> dict[str, Any] | None:
    sentences = headline.field_sentences(material.rows("headline"))
    frames = {gpu: studies["headline"] for gpu, studies in material.gpus.items() if "headline" in studies}
    if not sentences:
        return None
    under_load = sustained.table(material.frames)
    return {"sentences": sentences, "table": headline.field_table(frames), "under_load": under_load}
