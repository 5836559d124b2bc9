"""What to beware of in the published numbers."""

from __future__ import annotations

import re
from typing import Any

from ...claims import CLAIMS
from ...table import store
from ..section import Material
from ..tables import disagreements

TITLE, ORDER = "Hazards in the published numbers", 80
PAPER = CLAIMS.parent


def content(material: Material) -> dict[str, Any]:
    return {
        "hazards": hazards((PAPER / "README.md").read_text(encoding="utf-8")),
        "disagreements": disagreements(store.read_table(PAPER / "a100_latency.csv")),
    }


def hazards(readme: str) -> list[str]:
    """The list under the heading Hazards."""
    section = readme.split("## Hazards", 1)[1].split("\n## ", 1)[0]
    return [" ".join(item.split()) for item in re.findall(r"^- (.+(?:\n  .+)*)", section, re.MULTILINE)]
