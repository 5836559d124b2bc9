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

SWITCH = "TRITONMOE_RECORD_TESTS"
RESULTS = Path(__file__).resolve().parents[1] / "results"
OUTCOMES = ("passed", "failed", "skipped")
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


def where() -> str:
    """`interpreter`, or the GPU's name as results folders are called."""
    import torch

    from tritonmoe_bench.experiments.table.provenance import INTERPRETER
    from tritonmoe_bench.kernels.fast.tuned import slug

    return slug(torch.cuda.get_device_name()) if torch.cuda.is_available() else INTERPRETER


def stamp() -> dict[str, str]:
    """Of which commit the outcomes are, and when they were."""
    from tritonmoe_bench.experiments.table.provenance import commit, now_utc

    return {"commit": commit()[0], "when_utc": now_utc()}


def write(folder: Path, place: str, outcomes: dict[str, tuple[str, str]]) -> None:
    """Merges (group, outcome) of every test, by its id, into `folder`/tests-<place>.json."""
    counts = Counter(outcomes.values())
    path = folder / f"tests-{place}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    of = {"where": place, **stamp()}
    for group in sorted({group for group, _ in counts}):
        failures = sorted(test for test, found in outcomes.items() if found == (group, "failed"))
        record[group] = {outcome: counts[group, outcome] for outcome in OUTCOMES} | {"failures": failures} | of
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
