"""Makes this checkout importable as `tritonmoe_bench`, for scripts that are run as files.

`python experiments/sweep.py` puts `experiments/` first on sys.path, where its module names would shadow others. This
takes every folder of the checkout off sys.path and binds the one name instead, installed or not, so that a script
always runs the code it lies beside. Entry scripts call it by path (`runpy.run_path`) before any other import of ours.
A package that is not there, or a Python too old, then ends a script with one line, and not with a traceback.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tritonmoe_bench"
FOLDERS = ("kernels", "baselines", "experiments", "plots")
OLDEST = (3, 10)
"""The oldest Python, as in pyproject.toml."""


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


def report_missing(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """`sys.excepthook`: says which package an import lacks, and how to get it; leaves every other error as it is."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    ours = name == PACKAGE or name in FOLDERS
    if not issubclass(kind, ModuleNotFoundError) or not name or ours or importlib.util.find_spec(name):
        sys.__excepthook__(kind, error, trace)
        return
    frames = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith("<")]
    print(
        f"error: {sys.executable} has no package {name}, which {frames[-1].filename}:{frames[-1].lineno} imports: "
        "`make setup` installs what is needed into .venv, whose .venv/bin/python then runs this",
        file=sys.stderr,
    )


if sys.version_info < OLDEST:
    sys.exit(
        f"error: {sys.executable} is Python {sys.version.split()[0]}: allowed are {'.'.join(map(str, OLDEST))} and up"
    )
bind()
sys.excepthook = report_missing
