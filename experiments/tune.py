"""Writes the tuned table of `fast` for this machine's GPU: which tiles are the fastest, by layer and tokens.

    python experiments/tune.py
    python experiments/tune.py model=mixtral tokens=[1,8,32]
    python experiments/tune.py model=[mixtral,qwen3_30b_a3b] tp=8
    python experiments/tune.py model=deepseek_v3 quant=fp8_block tokens=[1,8,32,128,512]

Compiles all candidates (experiments/tuning/space.py) ahead, times the stages, then whole forwards of the best against
the heuristic, in turns, and keeps the heuristic where none is clearly faster. Timings go to
<results>/<device>/tune.csv, choices to <tables>/<device>.json, each as soon as it is known; the same command
again goes on where it was cut. Several GPUs share the work where each process sees one of them
(CUDA_VISIBLE_DEVICES) and takes other models: they write the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.tuning.plan import TuneConfig
from tritonmoe_bench.experiments.tuning.tune import tune
from tritonmoe_bench.experiments.workload.arguments import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Tunes, or says how to ask; returns the exit status."""
    return command(TuneConfig, __doc__, tune, arguments)


if __name__ == "__main__":
    sys.exit(main())
