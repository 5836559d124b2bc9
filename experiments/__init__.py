"""The harness: README.md is the map of its rooms.

A command of an installed copy is started as a module, `python -m tritonmoe_bench.experiments.sweep`.
"""

import sys

if sys.argv[:1] == ["-m"]:  # while Python looks for the module that it is to start
    from .checkout import begin

    begin()
