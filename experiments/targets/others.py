"""Kernels of others, which may tune themselves: how their launches are recorded, and a worker that compiles them.

    python -m tritonmoe_bench.experiments.targets.others FOLDER ...

The worker is one like compile.py, whose kernels lie in those folders. Each launch names its configuration, so a kernel
is taken without its `triton.autotune`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from typing import Any

import torch
import triton
from torch._subclasses import fake_tensor
from triton.runtime import autotuner

from ..implementation.contract import Implementation, Status
from ..implementation.registry import get
from ..workload.case import Case
from . import compile

NOT_HERE = 3
"""How a process ends that was to record a system which is not here."""
MIXTRAL = Case("mixtral", 8, 2, 4096, 14336, tokens=1)


class NotHere(Exception):
    """Which system of others cannot run, and why."""

    one_line = True


def systems_of_others(names: Iterable[str]) -> list[Implementation]:
    """The systems, which can run from now on over tensors without storage, in a process that takes its GPU for another
    (`device.pretend`). Their kernels launch each of their configurations instead of the fastest.

    Raises NotHere.
    """
    systems = [get(name) for name in names]
    for system in systems:
        sys.path[:0] = [str(folder) for folder in system.search_path()]
        answer = system.check(MIXTRAL)
        if answer.status is not Status.OK:
            raise NotHere(f"{system.name} is not here: {answer.reason}")
    if systems:
        _tune_nothing()
        _without_values()
    return systems


def _tune_nothing() -> None:
    def every(kernel: Any, *arguments: Any, **named: Any) -> None:
        for config in kernel.configs:
            kernel.fn.run(*arguments, **named, **config.all_kwargs())

    tuned: Any = autotuner.Autotuner
    tuned.run = every


def _without_values() -> None:
    """What tensors without storage cannot do, and code that reads its schedule on the host needs."""
    fake: Any = fake_tensor.FakeTensor
    numbers = itertools.count()
    fake.item = lambda tensor: next(numbers)  # the experts' first rows, one by one: as if each had one
    fake.__setitem__ = lambda tensor, index, value: None

    def tensor(data: list[Any], dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        return torch.empty(len(data), dtype=dtype, device=device)

    torch.tensor = tensor  # type: ignore[assignment]


def main() -> None:
    sys.path[:0] = sys.argv[1:]
    plain: Any = lambda *given, **named: lambda kernel: kernel  # noqa: E731
    triton.autotune = plain
    compile.main()


if __name__ == "__main__":
    main()
