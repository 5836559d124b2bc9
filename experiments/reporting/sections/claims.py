"""Every published claim: what is claimed, what is measured, the verdict, and how to decide it again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...analysis import age
from .. import again, pictures
from ..section import Material

TITLE, ORDER = "Claims", 10


def content(material: Material) -> dict[str, Any]:
    return {
        "claims": material.claims,
        "verdicts": Counter(claim.verdict for claim in material.claims),
        "again": {claim.id: again.command(claim.files, material.frames) for claim in material.claims},
        "ages": {claim.id: age.commits_of(claim.files, material.frames) for claim in material.claims},
        "drawn": set(pictures.drawn(material.figures / material.device)),
    }
