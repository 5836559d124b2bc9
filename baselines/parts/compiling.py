"""Triton kernels compiled by a pool of threads before they are timed; their own tuners compile one after another."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


@contextmanager
def in_threads() -> Iterator[None]:
    """Inside, kernels whose `warmup` is called are compiled by a pool of threads. Leaving waits for all."""
    from concurrent.futures import ThreadPoolExecutor

    from triton.runtime._async_compile import AsyncCompileMode

    with ThreadPoolExecutor(os.cpu_count()) as pool, AsyncCompileMode(pool, ignore_errors=True):
        yield


@contextmanager
def every_config(tuners: Iterable[Any]) -> Iterator[None]:
    """Inside, a launch of one of Triton's autotuned kernels compiles all configurations that it would try, in threads,
    and launches none."""
    with in_threads(), ExitStack() as stack:
        for tuner in tuners:
            stack.enter_context(mock.patch.object(tuner, "run", functools.partial(_warm_up, tuner.warmup)))
        yield


def _warm_up(compile_all: Callable[..., Any], *arguments: Any, warmup: bool, **options: Any) -> None:
    """Takes what `kernel[grid](...)` hands to `run`."""
    compile_all(*arguments, **options)
