"""Statements about kernels of other projects that public threads contradict each other on."""

from __future__ import annotations

from typing import Any

from ...analysis import age
from .. import again, pictures
from ..section import Material

TITLE, ORDER = "Claims that the field disputes", 15


def content(material: Material) -> dict[str, Any] | None:
    if not material.disputed:
        return None
    return {
        "claims": material.disputed,
        "again": {claim.id: again.command(claim.files, material.frames) for claim in material.disputed},
        "ages": {claim.id: age.commits_of(claim.files, material.frames) for claim in material.disputed},
        "drawn": set(pictures.drawn(material.figures / material.device)),
    }
