"""Writes the tuned table of `fast` for this machine's GPU: which tiles are the fastest, by layer and tokens.

    python experiments/tune.py
    python experiments/tune.py model=mixtral tokens=[1,8,32]

conf/tune.yaml says what every key means. Compiles all candidates (experiments/tuning/space.py) ahead, times the stages,
then whole forwards of the best against the heuristic, in turns, and keeps the heuristic where none is clearly faster.
Timings go to results/<device>/tune.csv, choices to kernels/fast/tuned/<device>.json, each as soon as it is known; the
same command again goes on where it was cut.
"""

from __future__ import annotations

import sys

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.tuning.plan import (
    read_config,
)
from tritonmoe_bench.experiments.tuning.tune import tune
from tritonmoe_bench.experiments.workload.config import CONF, PlanError


def main() -> None:
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__, (CONF / "tune.yaml").read_text(encoding="utf-8"), sep="\n")
        return
    try:
        tune(read_config(sys.argv[1:]))
    except PlanError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
