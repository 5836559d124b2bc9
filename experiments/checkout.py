"""Makes this checkout importable as `tritonmoe_bench`, for scripts that are run as files.

`python experiments/sweep.py` puts `experiments/` first on sys.path, where its module names shadow others. A script
begins with `import checkout`, which replaces that entry with `.src`, the folder that holds the one name, so that a
script always runs the code it lies beside. From then on an error that the user can mend (a missing package, a Python
too old, a damaged file of results, a file that cannot be written) ends the script with one line instead of a traceback.
What this module needs for that only is imported when it is needed: until `begin` an interrupt is a traceback.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / ".src"
"""The folder that holds the package in a checkout; an installed copy has none."""
PACKAGE = "tritonmoe_bench"
FOLDERS = ("kernels", "baselines", "experiments", "plots")
OLDEST = (3, 10)
"""The oldest Python, as in pyproject.toml."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
REFUSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def bind() -> None:
    """Puts the package of this checkout first on sys.path, and takes the checkout's own folders off it."""
    sys.path[:] = [entry for entry in sys.path if not _inside(entry)]
    if SOURCE.is_dir():
        sys.path.insert(0, str(SOURCE))


def program(module: str) -> list[str]:
    """The command that runs a module of ours, such as "experiments.sweeping.worker", in a process of its own."""
    return [sys.executable, "-m", f"{PACKAGE}.{module}"]


def program_environment(**changes: str) -> dict[str, str]:
    """The environment in which `program` finds this checkout and speaks UTF-8, with these variables changed."""
    paths = [str(SOURCE)] * SOURCE.is_dir() + [os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUTF8": "1"} | changes


def compiler_environment(**changes: str) -> dict[str, str]:
    """The same without Triton's interpreter: a process that interprets kernels cannot compile them."""
    return {name: value for name, value in program_environment(**changes).items() if name != "TRITON_INTERPRET"}


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints in that folder; None where it fails or is not there."""
    import subprocess

    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit_of(folder: Path, part: str) -> str | None:
    """The commit of the repository that tracks `part` of the folder; None for a copy without a history of its own.

    A copy may lie inside of another repository, whose commit says nothing about it.
    """
    tracked = git(folder, "ls-files", "--error-unmatch", "--", part) is not None
    return git(folder, "rev-parse", "HEAD") if tracked else None


def begin() -> None:
    """Has this process say in one line what ends it; until `interruptible` also an interrupt, at any moment."""
    sys.excepthook = report
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without µ shows a question mark instead
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def interruptible() -> None:
    """From now on an interrupt is a KeyboardInterrupt: there is something to finish, or to say where it lies."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    # An exception would be lost or printed wherever it arises, such as in a finalizer or inside of an import.
    os.write(2, b"\nstopped before anything was done\n")
    os._exit(128 + number)


def _inside(entry: str) -> bool:
    folder = Path(entry or ".").resolve()
    return folder in (ROOT, SOURCE) or (folder.parent == ROOT and folder.name in FOLDERS)


def one_line(error: BaseException) -> str | None:
    """What is wrong, and what to do, for an error that is the user's to mend; none for one that needs a traceback.

    An exception of ours whose message says all of that has an attribute `one_line`.
    """
    if getattr(error, "one_line", False):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, OSError) and (error.errno in FULL or (error.errno in REFUSED and error.filename)):
        path = error.filename2 or error.filename or "what was to be written"
        unreadable = os.path.exists(path) and not os.access(path, os.R_OK)
        return f"cannot {'read' if unreadable else 'write'} {path}: {error.strerror}"
    return None


def _missing(error: ModuleNotFoundError) -> str | None:
    """Which package an import lacks, and how to get it; none for a module of ours, or of a package that is there."""
    import importlib.util
    import traceback

    name = (error.name or "").partition(".")[0]
    if not name or name == PACKAGE or name in FOLDERS or importlib.util.find_spec(name):
        return None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    place = f"{Path(frames[-1].filename).resolve()}:{frames[-1].lineno}"
    return (
        f"{sys.executable} has no package {name}, which {place} imports: "
        "`make setup` installs what is needed into .venv, whose .venv/bin/python then runs this; in an environment of "
        "your own pip install 'tritonmoe-bench[harness]' does"
    )


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: an error in one line where that says all."""
    text = one_line(error)
    if isinstance(error, KeyboardInterrupt):
        print("\nstopped", file=sys.stderr)
    elif text is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {text}", file=sys.stderr)


if not __package__:  # run by path, and not imported for `one_line`
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}: allowed are {oldest} and up")
    begin()
    bind()
