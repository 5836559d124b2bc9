"""Locks between the processes of this host, or of a shared file system: files under flock.

The kernel drops such a lock with the process that holds it, however that ends, so that no dead job blocks another.
Files made here end in `.lock`, are empty, and stay where they are: deleting one would let two processes hold it.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def take(path: Path, *, shared: bool = False, wait: bool = True) -> IO[str] | None:
    """Takes the lock and returns the open file that holds it until it is closed; None if it is held and not waited for.

    Many may hold it `shared`, or one alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(path, "a", encoding="utf-8")  # noqa: SIM115, the lock lives as long as the open file
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        handle.close()
        return None
    return handle


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock alone inside the block; waits for it."""
    handle = take(path)
    assert handle is not None
    with handle:
        yield
