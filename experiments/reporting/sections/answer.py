"""The answer first: how far `fast` is ahead, and what holds of the paper, in one screen. The README begins with it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...analysis.age import older_methods
from .. import lead, pictures, sustained
from ..section import Material

TITLE, ORDER = "The answer", 0
FIGURE = "headline"
CLAIMS = ("throughput-vs-megablocks", "fused-over-unfused", "memory-traffic", "skew-regime", "correctness")
"""What the paper's abstract and write-up claim first."""
THEIRS = "TritonMoE"
"""How the source of a claim of the paper's authors begins."""


def content(material: Material) -> dict[str, Any]:
    headline = material.rows("headline")
    theirs = [claim for claim in material.claims if claim.source.startswith(THEIRS)]
    return {
        "leads_table": lead.lead_table(headline),
        "standings": lead.standings(headline),
        "older": older_methods({FIGURE: headline}) if len(headline) else [],
        "eager_again": lead.eager(material.rows("throughput")),
        "served": lead.as_served(*map(material.rows, ("quant", "native", "shards"))),
        "sustained": sustained.numbers(material.frames),
        "first_claims": [claim for claim in material.claims if claim.id in CLAIMS],
        "verdicts": Counter(claim.verdict for claim in theirs),
        "own_verdicts": Counter(claim.own_verdict for claim in theirs),
        "other_verdicts": Counter(claim.verdict for claim in material.claims if not claim.source.startswith(THEIRS)),
        "claims_page": "",
        "reference": "reference/README.md",
        "picture": pictures.drawn(material.figures / material.device).get(FIGURE),
    }
