"""Compiles every kernel for every target, with no GPU: what compiles, fits, spills, and reaches the matrix units.

    python experiments/portability.py                           # all targets: results/portability.csv, in minutes
    python experiments/portability.py --targets gfx942 --brief  # one target, a few launches for each configuration

Two processes record what would be launched on a target and compile it (record.py and compile.py in targets/),
several at a time. Exit status 1 if a default of any target fails there.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.targets.gpus import TARGETS
from tritonmoe_bench.experiments.targets.matrix import RESULTS, matrix, summary, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--brief", action="store_true", help="the fewest and the most tokens of each configuration")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--out", type=Path, help="the CSV; by default results/portability.csv, of a whole matrix only")
    chosen = parser.parse_args()
    rows = matrix(chosen.targets, brief=chosen.brief, jobs=chosen.jobs)
    print(summary(rows))
    whole = not chosen.brief and set(chosen.targets) == set(TARGETS)
    out = chosen.out or (RESULTS / "portability.csv" if whole else None)
    if out:
        write(out, rows)
        print(f"{len(rows)} rows in {out}")
    return 0 if all(row["status"] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
