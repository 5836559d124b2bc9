"""Compiles every kernel for every target, with no GPU: what compiles, fits, spills, and reaches the matrix units.

    python experiments/portability.py                            # all targets: results/portability.csv, in minutes
    python experiments/portability.py targets=gfx942 brief=true  # one target, a few launches of each configuration
    python experiments/portability.py code=authors               # the paper's own: results/portability_authors.csv

Two processes record what would be launched on a target and compile it (experiments/targets/), several at a time. The
exit status is 1 if a default of ours fails on any target. The paper's own code comes by `make checkouts`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.analysis.names import OWN_CODE, OWN_UNFUSED
from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.table.outcomes import AUTHORS, HERE, Files
from tritonmoe_bench.experiments.targets.gpus import TARGETS
from tritonmoe_bench.experiments.targets.matrix import RESULTS, matrix, summary, write
from tritonmoe_bench.experiments.workload.arguments import PlanError, command, key

CODE: dict[str, tuple[tuple[str, ...], Files]] = {"here": ((), HERE), "authors": ((OWN_CODE, OWN_UNFUSED), AUTHORS)}
"""Whose kernels are compiled: the systems, none for all of ours, and where a whole matrix goes."""


@dataclass
class PortabilityConfig:
    """The keys of a portability matrix."""

    targets: list[str] = key([], "GPUs to compile for, one or a list; by default all of", TARGETS)
    code: str = key("here", "whose kernels, ours or those of the paper's authors", CODE)
    brief: bool = key(False, "only the fewest and the most tokens of each configuration; the authors' are always so")
    jobs: int = key(0, "processes at a time; 0 for one per core")
    out: Path | None = key(None, "the CSV; by default that in results/, and of a whole matrix only")


def compile_matrix(config: PortabilityConfig) -> int:
    """Compiles, prints a summary and writes the CSV; returns the exit status."""
    targets = config.targets or list(TARGETS)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise PlanError(f"targets={unknown[0]}: allowed are {', '.join(TARGETS)}")
    if config.code not in CODE:
        raise PlanError(f"code={config.code}: allowed are {', '.join(CODE)}")
    systems, files = CODE[config.code]
    ours = not systems
    for name in systems:
        if not registry.get(name).search_path():
            raise PlanError(f"code={config.code}: {name} is not here, `make checkouts` brings it")
    brief = config.brief or not ours  # their tiles do not depend on the batch size: a few launches have them all
    jobs = config.jobs or len(os.sched_getaffinity(0))
    rows = matrix(targets, brief=brief, jobs=jobs, systems=systems)
    print(summary(rows))
    whole = not (ours and brief) and set(targets) == set(TARGETS)
    out = config.out or (RESULTS / files.portability if whole else None)
    if out:
        write(out, rows)
        print(f"{len(rows)} rows in {out}")
    return 0 if not ours or all(row["status"] == "ok" for row in rows) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles the matrix, or says how to ask; returns the exit status."""
    return command(PortabilityConfig, __doc__, compile_matrix, arguments)


if __name__ == "__main__":
    sys.exit(main())
