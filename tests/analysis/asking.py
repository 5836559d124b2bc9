"""A question to `choose` over the made-up results."""

import make_results

from tritonmoe_bench.experiments.analysis import choose
from tritonmoe_bench.experiments.workload.arguments import read

DEVICE = make_results.DEVICE


def ask(results, *arguments):
    return choose.answer(read(choose.Question, [*arguments, f"results={results}"]))
