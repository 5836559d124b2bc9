"""An engineer's question, answered from the committed rows of a GPU, with neither a GPU nor torch here: which system?

    python experiments/choose.py model=mixtral tokens=32
    python experiments/choose.py model=deepseek_v3 tokens=48 skew=1.2 dtype=bf16 device=nvidia-h200
    python experiments/choose.py model=mixtral tp=8 tokens=32
    python experiments/choose.py model=qwen2_paper num_experts=128 top_k=8 ffn_dim=1280 tokens=128

Looks at every study that times whole layers, of each its current run. Systems are only compared inside one run: the
one that timed most of them at this point stands first, and what another run adds follows with its own ratios.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.analysis.choose import Question, answer, parse
from tritonmoe_bench.experiments.workload.config import PlanError


def main(arguments: Sequence[str]) -> int:
    """Prints the answer, or how to ask; returns the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nKeys: {', '.join(field.name for field in fields(Question))}.\n{Question.__doc__}")
        return 0
    try:
        print(answer(parse(arguments)))
    except PlanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
