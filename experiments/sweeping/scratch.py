"""Temporary folders of sweeps: gone with their process, or swept by the next sweep if it was killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..table.locks import take


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for this process, removed at the end; first removes those whose processes are gone."""
    root = Path(tempfile.gettempdir()) / f"tritonmoe-bench-{os.getuid()}"
    own = root / secrets.token_hex(8)
    with contextlib.ExitStack() as held:
        making = take(root / "making.lock")
        assert making is not None
        with making:  # so that nobody sweeps a folder before its lock is held
            for folder in root.iterdir():
                lock = take(folder / "owner.lock", wait=False) if folder.is_dir() else None
                if lock is not None:
                    with lock:
                        shutil.rmtree(folder, ignore_errors=True)
            owner = take(own / "owner.lock")
            assert owner is not None
            held.enter_context(owner)
        held.callback(shutil.rmtree, own, ignore_errors=True)
        yield own
