"""Locks between the processes of this host, or of a shared file system: files under flock.

The kernel drops such a lock with the process that holds it, however that ends, so that no dead job blocks another.
Files made here end in `.lock`, are empty, and stay where they are: deleting one would let two processes hold it.
"""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

HELD = (errno.EAGAIN, errno.EACCES)
"""Another process holds the lock; NFS says EACCES where others say EAGAIN."""


class NoLocks(Exception):
    """The file system of a lock has none; the message names it and says what to do."""

    one_line = True


def take(path: Path, *, shared: bool = False, wait: bool = True) -> IO[str] | None:
    """Takes the lock and returns the open file that holds it until it is closed; None if it is held and not waited for.

    Many may hold it `shared`, or one alone. Raises NoLocks where the file system offers no locks, OSError where the
    file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # NFS makes a shared flock a lock for reading, and one held alone a lock for writing: it takes a file open for both.
    handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115, the lock lives as long as the open file
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        handle.close()
        if not wait and error.errno in HELD:
            return None
        raise NoLocks(
            f"cannot lock {path}: {error.strerror}; its file system needs locks, so that no row is lost: "
            "give results=... a folder on another one"
        ) from None
    return handle
