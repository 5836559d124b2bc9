"""Compiles launches that will be done on this machine, just as they would: they find their kernels in Triton's cache.

    python -m tritonmoe_bench.experiments.targets.ahead '[["module", "kernel"], ...]'

A worker like compile.py, for launches of the kernels that it is given, in the order of `keys_in_order`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import triton

from . import compile


def keys_in_order(kernels: Iterable[tuple[str, str]]) -> None:
    """Has kernels, of which each is a module and a name, get their keys of Triton's cache in this order.

    Triton 3.6 leaves the constants of a function that a kernel calls out of the kernel's key, unless another kernel
    that calls it has a key already. So the processes that compile and the one that launches go by one order.
    """
    for module, name in kernels:
        kernel = getattr(importlib.import_module(module), name)
        if isinstance(kernel, triton.JITFunction):  # the interpreter has no keys
            _ = kernel.cache_key


def constants_as_launched() -> None:
    """From now on `JITFunction.preload` has tuples where JSON has lists. Triton 3.6 leaves the lists; a launch has
    tuples, and the cache tells the two apart."""
    compiles = triton.JITFunction._do_compile

    def with_tuples(kernel: Any, key: Any, signature: Any, device: Any, constants: dict[Any, Any], *rest: Any,
                    **named: Any) -> Any:  # fmt: skip
        constants = {name: tuples(value) for name, value in constants.items()}
        return compiles(kernel, key, signature, device, constants, *rest, **named)

    triton.JITFunction._do_compile = with_tuples


def tuples(value: Any) -> Any:
    """The value, with tuples in the place of lists, nested ones too."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def main() -> None:
    constants_as_launched()
    keys_in_order(json.loads(sys.argv[1]))
    compile.main()


if __name__ == "__main__":
    main()
