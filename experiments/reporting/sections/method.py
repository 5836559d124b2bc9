"""How the rows were measured, and the noise of each study."""

from __future__ import annotations

from typing import Any

from ..section import Material
from ..tables import timing_facts
from ..texts import say

TITLE, ORDER = "Method", 85


def content(material: Material) -> dict[str, Any]:
    records = {name: study.record for name, study in material.studies.items()}
    facts = timing_facts(material.frames, records)
    return {"timing": [(fact["study"], _texts(fact)) for fact in facts]}


def _texts(fact: dict[str, Any]) -> list[str]:
    texts = [say("timing.j2", macro, fact=fact) for macro in ("latencies", "rates", "drift")]
    return [text for text in texts if text]
