"""Runs the tests that the paper's authors publish, on their own code and this GPU: results/paper-tests-<device>.json.

    python experiments/papertests.py

The code comes by `make checkouts`. What fails is recorded like what passes; the report judges the claim by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.names import OWN_CODE
from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.table import outcomes, store
from tritonmoe_bench.experiments.workload.arguments import command, key

TESTS = "tests/test_moe_dispatch.py"
ENDS = (0, 1)
"""How pytest ends after all tests: none failed, or some did."""


class CannotRun(Exception):
    """Why the tests cannot run here, and what to do."""

    one_line = True


def outcomes_here() -> dict[str, Any]:
    """What `outcomes.record` says of them, and `checkout`, which version of the code it is. Prints what pytest says.

    Raises CannotRun without a GPU or a checkout that has them, and where pytest did not come to its end.
    """
    implementation = registry.get(OWN_CODE)
    place = outcomes.where()
    if place == outcomes.INTERPRETER:
        raise CannotRun("the paper's tests run on a GPU alone, and there is none here")
    for folder in implementation.search_path():
        if (folder / TESTS).is_file():
            break
    else:
        raise CannotRun(
            f"no checkout of the paper's code with {TESTS}: python baselines/builds/checkouts/build.py {OWN_CODE}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        # Neither our settings of pytest nor theirs, and no file of ours in the checkout.
        command = [
            sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull,
            f"--rootdir={folder}", f"--junitxml={report}", TESTS,
        ]  # fmt: skip
        settings = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=settings)
        if done.returncode not in ENDS or not report.exists():  # it is not here, could not load them, was interrupted
            raise CannotRun(
                f"pytest did not run the tests to their end: code {done.returncode}, and what it says above"
            )
        told = outcomes_in(report)
    return outcomes.record(told, place) | {"checkout": implementation.version()}


def outcomes_in(report: Path) -> dict[str, str]:
    """Outcomes by test, of a report of pytest in JUnit's format."""
    told = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        failed = tags & {"failure", "error"}
        told[f"{case.get('classname')}::{case.get('name')}"] = (
            "failed" if failed else "skipped" if "skipped" in tags else "passed"
        )
    return told


@dataclass
class PaperTestsConfig:
    """The keys of a run of the authors' tests."""

    results: Path = key(ROOT / "results", "folder of the record")


def run(config: PaperTestsConfig) -> int:
    """Runs them, and writes the record; returns the exit status."""
    told = outcomes_here()
    path = config.results / outcomes.AUTHORS.of_tests(told["where"])
    store.write_whole(path, json.dumps(told, indent=1) + "\n")
    print(f"{', '.join(f'{told[name]} {name}' for name in outcomes.OUTCOMES)} on {told['where']}: {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tests, or says how to ask; returns the exit status."""
    return command(PaperTestsConfig, __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
