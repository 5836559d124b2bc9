"""Says how many of the paper's cases and of our tests passed, and where, and records it for the report: hooks that
conftest.py imports.

With TRITONMOE_RECORD_TESTS set, a test session writes results/tests-<where>.json, where is `interpreter` or the name of
the GPU: {"paper_grid": {"passed": n, "failed": m, "skipped": k, "failures": [ids], "where": where, "commit": c,
"when_utc": t}, "ours": {...}}, the tests marked paper_grid and all others. A group of which no test ran keeps what an
earlier session recorded.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tritonmoe_bench.experiments.table.outcomes import HERE, OUTCOMES, record, where

SWITCH = "TRITONMOE_RECORD_TESTS"
RESULTS = Path(__file__).resolve().parents[1] / "results"
GROUPS = {"paper_grid": "the paper's cases", "ours": "tests of our own"}

_outcomes: dict[str, tuple[str, str]] = {}
"""(group, outcome) of every test, by its id."""


def pytest_runtest_logreport(report: Any) -> None:
    """A test has the outcome of its call, unless its set-up or tear-down failed or skipped it."""
    if report.when == "call" or report.outcome != "passed":
        group = "paper_grid" if "paper_grid" in report.keywords else "ours"
        failed_before = _outcomes.get(report.nodeid, ("", ""))[1] == "failed"
        _outcomes[report.nodeid] = (group, "failed" if failed_before else report.outcome)


def pytest_sessionfinish(session: Any) -> None:
    if os.environ.get(SWITCH) and not hasattr(session.config, "workerinput"):
        write(RESULTS, where(), _outcomes)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each group of which a test ran: how many had which outcome, and on what."""
    counts = Counter(_outcomes.values())
    for group in sorted({group for group, _ in counts}, reverse=True):
        told = ", ".join(f"{counts[group, outcome]} {outcome}" for outcome in OUTCOMES if counts[group, outcome])
        terminalreporter.write_line(f"{GROUPS[group]} on {where()}: {told}")


def write(folder: Path, place: str, outcomes: dict[str, tuple[str, str]]) -> None:
    """Merges (group, outcome) of every test, by its id, into `folder`/tests-<place>.json."""
    path = folder / HERE.of_tests(place)
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for group in sorted({group for group, _ in outcomes.values()}):
        told[group] = record({test: how for test, (of, how) in outcomes.items() if of == group}, place)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
