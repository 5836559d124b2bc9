"""Answers an engineer's question from the committed rows of a GPU, with neither a GPU nor torch here: which system?

    python experiments/choose.py model=mixtral tokens=32
    python experiments/choose.py model=deepseek_v3 tokens=48 skew=1.2 dtype=bf16 device=nvidia-h200
    python experiments/choose.py model=qwen2_paper num_experts=128 top_k=8 ffn_dim=1280 tokens=128

Looks at every study that times whole layers, of each its current run. Systems are only compared inside one run: the
one that timed the most peers at this point stands first, of equal ones the newest, and what another run adds follows
with its own ratios; ≈ is no difference beyond the noise. Which of the usual systems, `fast` and the set `serving` of
conf/systems.yaml, were not timed there stands in front. A batch size between measured ones is answered by both
neighbours, of these the nearest skew, from points with the usual systems where some are near; what else was not
measured by the nearest that was, or by one line with the command that measures it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

if not __package__:
    import checkout  # noqa: F401  (the package of this checkout, onto the import path)

from tritonmoe_bench.experiments.analysis.choose import Question, answer
from tritonmoe_bench.experiments.workload.arguments import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the answer, or how to ask; returns the exit status."""
    return command(Question, __doc__, lambda question: print(answer(question)), arguments)


if __name__ == "__main__":
    sys.exit(main())
