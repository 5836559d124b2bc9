"""Measures bytes moved, by the traffic model or by counting in Triton's interpreter."""

from __future__ import annotations

from typing import Any

from ..implementation.contract import Implementation
from ..measure.bench import Bench
from ..table import columns
from ..workload.case import Case

INTERPRETER_FLOPS = 2e8
"""The largest forward that Triton's interpreter is asked to run."""


def measure_traffic(
    implementation: Implementation, case: Case, methods: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """Rows of counted bytes by each method."""
    from .rows import traffic_rows

    rows = []
    for method in methods:
        if method == "interpreter" and case.flops > INTERPRETER_FLOPS:
            rows.append(columns.failed("traffic", method, "unsupported", "too large for Triton's interpreter"))
        else:
            rows += traffic_rows(case, implementation.name, method)
    return [{"config": implementation.config(case)} | row for row in rows]
