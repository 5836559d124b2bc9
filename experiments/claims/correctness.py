"""Claims decided by what compiled and what passed, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..analysis.compare import NoEvidence
from ..targets.gpus import TARGETS
from .evidence import Evidence
from .finding import Finding, Verdict, rule

HARDWARE = ("A100", "MI300X")
"""The two GPUs on which the paper says that its tests pass."""
INTERPRETER = "interpreter"


@rule(
    "correctness",
    "Outcomes of the tests marked paper_grid (results/tests-<where>.json). Holds if all {tests} pass on an A100 and on "
    "an MI300X; in part if all {tests} pass wherever they were run; does not hold if one fails anywhere.",
)
def correctness(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    grids = {where: record["paper_grid"] for where, record in evidence.tests.items() if "paper_grid" in record}
    if not grids:
        raise NoEvidence("No outcome of the tests marked paper_grid is recorded")
    wanted = figures["tests"]
    failed = {where: grid["failed"] for where, grid in grids.items() if grid["failed"]}
    complete = [where for where, grid in grids.items() if grid["passed"] == wanted and not grid["failed"]]
    if failed:
        verdict = Verdict.DOES_NOT
    elif not complete:
        raise NoEvidence(f"No recorded run of the tests marked paper_grid passed all {wanted}", _rows(grids))
    else:
        verdict = Verdict.HOLDS if not _absent(complete) and len(complete) == len(grids) else Verdict.IN_PART
    measured = "; ".join(
        f"{grid['passed']} of {wanted} pass {_on(where)}{_ours(evidence.tests[where])}"
        for where, grid in sorted(grids.items())
    )
    absent = _absent(list(grids))
    sentence = f"All {wanted} cases pass {', '.join(_on(where) for where in sorted(complete)) or 'nowhere'}"
    if failed:
        sentence += "; " + ", ".join(f"{count} fail {_on(where)}" for where, count in sorted(failed.items()))
    sentence += f"; not run on {' or '.join(absent)}." if absent else "."
    return Finding(verdict, measured, sentence, _rows(grids))


@rule(
    "portability",
    "results/portability.csv, every kernel and configuration compiled for each target, and the recorded tests. Holds "
    "if all compile, fit, do not spill and reach the matrix units on the A100 and the MI300X, and the tests passed on "
    "both; in part if all do but the tests were not run on both, or if some do for each; does not hold if none does "
    "for one of them.",
    figure="portability",
)
def portability(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.portability
    if frame.empty:
        raise NoEvidence("The study portability has not been run")
    compiled = {}
    for target, rows in frame.groupby("target", sort=False):
        label = TARGETS[str(target)].label
        compiled[label] = (int((rows["status"] == "ok").sum()), len(rows))
    lacking = [name for name in figures["targets"] if name not in compiled]
    if lacking:
        raise NoEvidence(f"portability.csv has no row for {lacking[0]}", f"portability.csv: 0 of {len(frame)} rows")
    claimed = [compiled[name] for name in figures["targets"]]
    passed = [
        where for where, record in evidence.tests.items()
        if record.get("paper_grid", {}).get("passed") and not record["paper_grid"]["failed"]
    ]  # fmt: skip
    absent = _absent(passed)
    if any(ok == 0 for ok, _ in claimed):
        verdict = Verdict.DOES_NOT
    else:
        everything = all(ok == count for ok, count in claimed)
        verdict = Verdict.HOLDS if everything and not absent else Verdict.IN_PART
    hardware = ", ".join(sorted(where for where in passed if where != INTERPRETER)) or "nothing"
    measured = f"compiled for {', '.join(f'{name} ({ok} of {count} ok)' for name, (ok, count) in compiled.items())}"
    measured += f"; ran on {hardware}" + (", and in the interpreter" if INTERPRETER in passed else "")
    sentence = (
        f"Of {len(frame)} pairs of a kernel's configuration and a target, {int((frame['status'] == 'ok').sum())} "
        "compile without a GPU, fit into shared memory, do not spill and reach the matrix units that their tiles "
        f"allow: {_of_targets(compiled)}. The paper's test cases pass on {hardware}"
    )
    sentence += " and in Triton's interpreter" if INTERPRETER in passed else ""
    sentence += f"; they were not run on {' or '.join(absent)}." if absent else "."
    deciding = sum(count for _, count in claimed)
    return Finding(verdict, measured, sentence, f"portability.csv: {deciding} of {len(frame)} rows")


def _of_targets(compiled: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{'all' if ok == count else ok} of {count} on {name}" for name, (ok, count) in compiled.items())


def _on(place: str) -> str:
    return "in the interpreter" if place == INTERPRETER else f"on {place}"


def _ours(record: Mapping[str, Any]) -> str:
    """How many of the tests that are not the paper's passed there too, where that was recorded."""
    own = record.get("ours")
    if not own:
        return ""
    failed = f", {own['failed']} failed" if own["failed"] else ""
    return f" (and {own['passed']} tests of our own{failed})"


def _absent(places: list[str]) -> list[str]:
    """The paper's GPUs that are not among the places."""
    return [name for name in HARDWARE if not any(name.lower() in place.lower() for place in places)]


def _rows(grids: Mapping[str, Any]) -> str:
    """The records, each with the commit that was tested, where it says so."""
    return ", ".join(
        f"tests-{where}.json" + (f" ({grid['commit'][:10]})" if grid.get("commit") else "")
        for where, grid in sorted(grids.items())
    )
