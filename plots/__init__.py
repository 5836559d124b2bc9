"""The figures, and `draw`, which draws them."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m tritonmoe_bench.plots.draw`, as experiments/__init__.py says
    from ..experiments.checkout import begin

    begin()
