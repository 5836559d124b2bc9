"""Does it carry over? The verdicts and the lead of `fast` on every GPU that has rows, side by side."""

from __future__ import annotations

from typing import Any

from .. import lead
from ..section import Material
from ..tables import Table

TITLE, ORDER = "Other GPUs", 25


def content(material: Material) -> dict[str, Any] | None:
    if not material.others:
        return None
    verdicts = Table("Verdicts", ["claim", *material.gpus], text=range(1 + len(material.gpus)))
    columns = [material.claims, *material.other_claims.values()]
    for claims in zip(*columns):
        verdicts.rows.append([claims[0].title, *(claim.verdict.value for claim in claims)])
    leads = {
        gpu: lead.standings(studies["headline"])["every"]
        for gpu, studies in material.gpus.items()
        if "headline" in studies and lead.standings(studies["headline"])
    }
    return {"verdicts": verdicts, "leads": leads}
