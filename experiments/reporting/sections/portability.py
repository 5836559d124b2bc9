"""Kernels by target, as compiled with no GPU, and where the tests ran."""

from __future__ import annotations

from typing import Any

from ...claims import Outcomes
from .. import portability
from ..section import Material

TITLE, ORDER = "Portability", 60


def content(material: Material) -> dict[str, Any] | None:
    here, authors = material.outcomes, material.outcomes.authors or Outcomes()
    table, theirs = (portability.matrix_table(of.portability) for of in (here, authors))
    tests = portability.outcomes_table(here.tests, authors.tests)
    failed = portability.failures([here.tests, authors.tests])
    every = {"table": table, "authors": theirs, "tests": tests, "failed": failed}
    return every if table or theirs or tests else None
