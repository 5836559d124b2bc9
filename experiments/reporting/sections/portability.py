"""Kernels by target, as compiled with no GPU, and where the tests ran."""

from __future__ import annotations

from typing import Any

from .. import portability
from ..section import Material

TITLE, ORDER = "Portability", 60


def content(material: Material) -> dict[str, Any] | None:
    table = portability.matrix_table(material.portability)
    tests = portability.outcomes_table(material.tests)
    failed = portability.failures(material.tests)
    return {"table": table, "tests": tests, "failed": failed} if table or tests else None
