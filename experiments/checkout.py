"""Makes this checkout importable as `tritonmoe_bench`, for scripts that are run as files.

`python experiments/sweep.py` puts `experiments/` first on sys.path, where its module names would shadow others. This
takes every folder of the checkout off sys.path and binds the one name instead, installed or not, so that a script
always runs the code it lies beside. Entry scripts call it by path (`runpy.run_path`) before any other import of ours.
A package that is not there, a Python too old, a damaged file of results, or a file that cannot be written then ends a
script with one line, and not with a traceback.
"""

from __future__ import annotations

import errno
import importlib.machinery
import importlib.util
import os
import sys
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tritonmoe_bench"
FOLDERS = ("kernels", "baselines", "experiments", "plots")
OLDEST = (3, 10)
"""The oldest Python, as in pyproject.toml."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
REFUSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def bind() -> None:
    """Binds `tritonmoe_bench` to this checkout, once."""
    sys.path[:] = [entry for entry in sys.path if not _inside(entry)]
    bound = sys.modules.get(PACKAGE)
    if bound is None or list(getattr(bound, "__path__", [])) != [str(ROOT)]:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(ROOT)]
        package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        package.__spec__.submodule_search_locations = [str(ROOT)]
        sys.modules[PACKAGE] = package


def _inside(entry: str) -> bool:
    folder = Path(entry or ".").resolve()
    return folder == ROOT or (folder.parent == ROOT and folder.name in FOLDERS)


def one_line(error: BaseException) -> str | None:
    """What is wrong, and what to do, for an error that is the user's to mend; none for one that needs a traceback.

    An exception of ours whose message says all of that has an attribute `one_line`.
    """
    if getattr(error, "one_line", False):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, OSError) and (error.errno in FULL or (error.errno in REFUSED and error.filename)):
        path = error.filename or "what was to be written"
        unreadable = os.path.exists(path) and not os.access(path, os.R_OK)
        return f"cannot {'read' if unreadable else 'write'} {path}: {error.strerror}"
    return None


def _missing(error: ModuleNotFoundError) -> str | None:
    """Which package an import lacks, and how to get it; none for a module of ours, or of a package that is there."""
    name = (error.name or "").partition(".")[0]
    if not name or name == PACKAGE or name in FOLDERS or importlib.util.find_spec(name):
        return None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    return (
        f"{sys.executable} has no package {name}, which {frames[-1].filename}:{frames[-1].lineno} imports: "
        "`make setup` installs what is needed into .venv, whose .venv/bin/python then runs this"
    )


def report(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """`sys.excepthook`: an error in one line where that says all."""
    text = one_line(error)
    if text is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {text}", file=sys.stderr)


if not __package__:  # run by path, and not imported for `one_line`
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}: allowed are {oldest} and up")
    bind()
    sys.excepthook = report
