"""Claims decided by what compiled and what passed, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .evidence import Evidence, NoEvidence
from .finding import Finding, Verdict, rule

HARDWARE = ("A100", "MI300X")
"""The two GPUs on which the paper says that its tests pass."""
TARGET_NAMES = {"A100": ("a100", "sm_80"), "MI300X": ("mi300x", "gfx942")}


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
    measured = "; ".join(f"{grid['passed']} of {wanted} pass on {where}" for where, grid in sorted(grids.items()))
    absent = _absent(list(grids))
    sentence = f"All {wanted} cases pass on {', '.join(sorted(complete)) or 'nothing'}"
    if failed:
        sentence += "; " + ", ".join(f"{count} fail on {where}" for where, count in sorted(failed.items()))
    sentence += f"; not run on {' or '.join(absent)}." if absent else "."
    return Finding(verdict, measured, sentence, _rows(grids))


@rule(
    "portability",
    "results/portability.csv, every kernel and configuration compiled for each target, and the recorded tests. Holds "
    "if all compile for the A100 and the MI300X and the tests passed on both; in part if all compile for both but were "
    "not run on both, or some compile for each; does not hold if nothing compiles for one of them.",
)
def portability(evidence: Evidence, figures: Mapping[str, Any]) -> Finding:
    frame = evidence.portability
    if frame.empty:
        raise NoEvidence("The study portability has not been run")
    target = frame["target"].astype(str).str.lower()
    compiled = {}
    for name in figures["targets"]:
        rows = frame[target.apply(lambda text, names=TARGET_NAMES[name]: any(part in text for part in names))]
        if rows.empty:
            raise NoEvidence(f"portability.csv has no row for {name}", f"portability.csv: 0 of {len(frame)} rows")
        compiled[name] = (int((rows["status"] == "ok").sum()), len(rows))
    passed = [
        where for where, record in evidence.tests.items()
        if record.get("paper_grid", {}).get("passed") and not record["paper_grid"]["failed"]
    ]  # fmt: skip
    absent = _absent(passed)
    if any(ok == 0 for ok, _ in compiled.values()):
        verdict = Verdict.DOES_NOT
    else:
        everything = all(ok == count for ok, count in compiled.values())
        verdict = Verdict.HOLDS if everything and not absent else Verdict.IN_PART
    measured = "; ".join(f"{ok} of {count} compile for {name}" for name, (ok, count) in compiled.items())
    ran = f"the tests passed on {', '.join(sorted(passed)) or 'nothing yet'}"
    sentence = f"{measured}; {ran}" + (f", not on {' or '.join(absent)}." if absent else ".")
    deciding = sum(count for _, count in compiled.values())
    return Finding(verdict, measured, sentence, f"portability.csv: {deciding} of {len(frame)} rows")


def _absent(places: list[str]) -> list[str]:
    """The paper's GPUs that are not among the places."""
    return [name for name in HARDWARE if not any(name.lower() in place.lower() for place in places)]


def _rows(grids: Mapping[str, Any]) -> str:
    return ", ".join(f"tests-{where}.json" for where in sorted(grids))
