"""Every drawn figure, those of the claims first; another GPU's stands below the same one."""

from __future__ import annotations

from typing import Any

from ..pictures import drawn
from ..section import Material

TITLE, ORDER = "Figures", 70
FIRST = ("headline", "throughput", "traffic", "paper_ratios", "ranking")


def content(material: Material) -> dict[str, Any]:
    pictures = {gpu: drawn(material.figures / gpu) for gpu in material.gpus}
    names = dict.fromkeys(name for drawn_there in pictures.values() for name in drawn_there)
    order = dict.fromkeys([*(name for name in FIRST if name in names), *names])
    claims = {name: [claim for claim in material.claims if claim.figure == name] for name in order}
    return {
        "figures": [
            {
                "name": name,
                "drawn": [there[name] for there in pictures.values() if name in there],
                "claims": claims[name],
            }
            for name in order
        ]
    }
