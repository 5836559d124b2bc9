"""`fast` on the layers that models run, each with its own gating, activation, biases and shared experts."""

from __future__ import annotations

from typing import Any

from .. import headline
from ..section import Material

TITLE, ORDER = "The layers that models run", 22


def content(material: Material) -> dict[str, Any] | None:
    sentence = headline.native_sentence(material.rows("native"))
    frames = {gpu: studies["native"] for gpu, studies in material.gpus.items() if "native" in studies}
    return {"sentence": sentence, "table": headline.native_table(frames)} if sentence else None
