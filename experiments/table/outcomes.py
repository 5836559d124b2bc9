"""How tests went: results/tests-<where>.json of the tests here, paper-tests-<where>.json of those of the paper's
authors.

where: `interpreter`, or the name of the GPU as results folders are called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .provenance import INTERPRETER, commit, now_utc

OUTCOMES = ("passed", "failed", "skipped")


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
