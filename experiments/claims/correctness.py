"""Claims decided by what compiled and what passed, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..analysis.compare import NoEvidence, Source
from ..table.provenance import INTERPRETER
from ..targets.gpus import TARGETS
from .evidence import Evidence
from .finding import Finding, Verdict, rule

HARDWARE = ("A100", "MI300X")
"""The two GPUs on which the paper says that its tests pass."""


@rule("correctness", of_paper_code=True)
def correctness(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    grids = _grids(evidence)
    if not grids:
        raise NoEvidence("No outcome of the tests marked paper_grid is recorded")
    wanted = figures["tests"]
    deciding = tuple(
        Source(evidence.outcomes.files.of_tests(where), commit=grid.get("commit", "")) for where, grid in grids.items()
    )
    failed = {where: grid["failed"] for where, grid in grids.items() if grid["failed"]}
    complete = [where for where, grid in grids.items() if grid["passed"] == wanted and not grid["failed"]]
    if failed:
        verdict = Verdict.DOES_NOT
    elif not complete:
        raise NoEvidence(f"No recorded run of the tests marked paper_grid passed all {wanted}", deciding)
    else:
        verdict = Verdict.HOLDS if not _absent(complete) and len(complete) == len(grids) else Verdict.IN_PART
    numbers = {
        "wanted": wanted, "passed": {where: grid["passed"] for where, grid in grids.items()}, "failed": failed,
        "complete": complete, "absent": _absent(list(grids)),
        "ours": {where: evidence.outcomes.tests[where].get("ours", {}) for where in grids},
    }  # fmt: skip
    return Finding(verdict, numbers, deciding)


@rule("portability", of_paper_code=True)
def portability(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame, file = evidence.outcomes.portability, evidence.outcomes.files.portability
    if frame.empty:
        raise NoEvidence("The study portability has not been run")
    compiled = {
        TARGETS[target].label: (int((rows["status"] == "ok").sum()), len(rows))
        for target, rows in ((target, frame[frame["target"] == target]) for target in TARGETS)
        if len(rows)
    }
    lacking = [name for name in figures["targets"] if name not in compiled]
    if lacking:
        raise NoEvidence(f"{file} has no row for {lacking[0]}", [Source(file, 0, len(frame))])
    claimed = [compiled[name] for name in figures["targets"]]
    passed = [where for where, grid in _grids(evidence).items() if grid["passed"] and not grid["failed"]]
    absent = _absent(passed)
    if any(ok == 0 for ok, _ in claimed):
        verdict = Verdict.DOES_NOT
    else:
        everything = all(ok == count for ok, count in claimed)
        verdict = Verdict.HOLDS if everything and not absent else Verdict.IN_PART
    numbers = {
        "compiled": compiled, "ok": int((frame["status"] == "ok").sum()), "total": len(frame),
        "hardware": [where for where in passed if where != INTERPRETER], "interpreted": INTERPRETER in passed,
        "absent": absent,
    }  # fmt: skip
    deciding = Source(file, sum(count for _, count in claimed), len(frame))
    return Finding(verdict, numbers, (deciding,))


def _grids(evidence: Evidence) -> dict[str, Mapping[str, Any]]:
    """Outcomes of the paper's own cases by where they ran, in alphabetical order."""
    tests = evidence.outcomes.tests
    return {where: record["paper_grid"] for where, record in sorted(tests.items()) if "paper_grid" in record}


def _absent(places: list[str]) -> list[str]:
    """The paper's GPUs that are not among the places."""
    return [name for name in HARDWARE if not any(name.lower() in place.lower() for place in places)]
