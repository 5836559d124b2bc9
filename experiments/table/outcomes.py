"""How tests went, and the files in results/ that say so of ours and of the paper's authors' code.

where: `interpreter`, or the name of the GPU as results folders are called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .provenance import INTERPRETER, commit, now_utc

OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True)
class Files:
    """Names of what tests and compilers said of some kernels.

    tests: how the record of each place begins, <tests>-<where>.json; portability: the matrix of kernels and targets.
    """

    tests: str
    portability: str

    def of_tests(self, place: str) -> str:
        """The name of the record of tests that ran there."""
        return f"{self.tests}-{place}.json"

    def places(self, results: Path) -> dict[str, Path]:
        """The records that a folder of results has, by where the tests ran."""
        return {path.stem.removeprefix(f"{self.tests}-"): path for path in sorted(results.glob(self.of_tests("*")))}


HERE = Files("tests", "portability.csv")
AUTHORS = Files("paper-tests", "portability_authors.csv")


def where() -> str:
    """`interpreter`, or the GPU's name as results folders are called."""
    import torch

    from tritonmoe_bench.kernels.fast.tuned import slug

    return slug(torch.cuda.get_device_name()) if torch.cuda.is_available() else INTERPRETER


def record(outcomes: Mapping[str, str], place: str) -> dict[str, Any]:
    """What is recorded of tests: how many had which outcome, which failed, where, and of which commit and when that is.

    outcomes: by the test's id, one of `OUTCOMES`.
    """
    counts = Counter(outcomes.values())
    return {
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        "failures": sorted(test for test, outcome in outcomes.items() if outcome == "failed"),
        "where": place, "commit": commit()[0], "when_utc": now_utc(),
    }  # fmt: skip
