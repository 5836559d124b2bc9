"""Finds every implementation: the subclasses of `Implementation` in baselines/.

TRITONMOE_ADAPTERS lists further folders with one file per system. No room imports baselines/: its modules are found and
imported by name, when somebody first asks. An adapter that raises, exits or hangs costs itself and no other one.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TypeVar

import tritonmoe_bench
from tritonmoe_bench import ROOT

from . import contract
from .contract import Implementation

Result = TypeVar("Result")
File = tuple[Path, Callable[[], ModuleType]]
"""A file that may hold adapters, and what imports it."""
FOLDERS = "TRITONMOE_ADAPTERS"
IMPORT_LIMIT_S = 30.0
"""The longest that an adapter may take to be imported: it imports its system later."""

BASELINES = "baselines"
"""The folder of the adapters, and the package that they are imported from."""
NEEDED = ("name", "family", "source")
"""Class attributes every adapter needs. `name` must be set on the class itself; the others may be inherited."""
NAME_LINE = re.compile(r"""^\s+name\b[^=\n]*=\s*["'](\w+)["']""", re.MULTILINE)
"""The line that names an adapter, for files that cannot be imported."""


class AdapterFault(Exception):
    """What code of an adapter did instead of returning, in one line."""


def attempt(work: Callable[[], Result], limit_s: float) -> Result:
    """Calls code of an adapter. Raises AdapterFault if it raises, exits, or takes longer than the limit.

    The limit needs the main thread, and holds for Python code: a call into C ends first.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {limit_s:g} s")

    limited = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, late) if limited else None
    try:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)  # again after a second, should it be caught
        return work()
    except (Exception, SystemExit) as error:
        raise AdapterFault(_reason(error)) from error
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _reason(error: BaseException) -> str:
    """An exception of an adapter in one line, with what to do about an import that fails."""
    if isinstance(error, SystemExit):
        return f"it ends the process: {described(error)}"
    if not isinstance(error, ImportError):
        return described(error)
    if not (error.name or "").startswith("tritonmoe_bench"):
        return f"{described(error)}; if it is spelt right, import it inside check, version and build only"
    [wrong] = re.findall(r"cannot import name '(\w+)'", str(error)) or [""]
    close = difflib.get_close_matches(wrong, [name for name in vars(contract) if not name.startswith("_")], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{described(error)}; {hint}an adapter begins with `from {contract.__name__} import ...`"


def implementations() -> dict[str, Implementation]:
    """Every implementation by name, sorted by name, without those that are `broken`."""
    return adapters()[0]


def broken() -> list[tuple[str, str]]:
    """(name, file and reason) of each faulty adapter; where its name cannot be told, that of its file stands for it."""
    return adapters()[1]


@functools.cache
def adapters() -> tuple[dict[str, Implementation], list[tuple[str, str]]]:
    """What `implementations` and `broken` give."""
    found, faults = _adapters(_files())
    for folder in _folders():
        lacks = "" if any(folder.glob("*.py")) else "has no *.py file" if folder.is_dir() else "is no folder"
        if lacks:
            faults.append((str(folder), f"{FOLDERS}: {folder} {lacks}"))
    return found, faults


def _adapters(files: Iterable[File]) -> tuple[dict[str, Implementation], list[tuple[str, str]]]:
    """The adapters of these files by name, and the faults as of `broken`."""
    found: dict[str, Implementation] = {}
    faults: list[tuple[str, str]] = []
    called: dict[str, list[tuple[Path, type[Implementation]]]] = {}
    for path, kinds in _classes(files, faults):
        for kind in kinds:
            if "name" in vars(kind):
                called.setdefault(str(kind.name), []).append((path, kind))
            elif not kind.__subclasses__():  # what others build on is no system by itself, and needs no name
                faults.append((path.stem, f"{short(path)}: {kind.__name__} lacks a name of its own"))
    for name, ((path, kind), *others) in sorted(called.items()):
        lacking = [attribute for attribute in NEEDED if not isinstance(getattr(kind, attribute, None), str)]
        lacking += [f"{method}()" for method in sorted(kind.__abstractmethods__)]
        if others:
            also = ", ".join(f"{other.__name__} in {short(file)}" for file, other in others)
            reason = f"{kind.__name__} has the name {name}, and so has {also}: rename one of them"
        elif lacking:
            reason = f"{kind.__name__} lacks {', '.join(lacking)}"
        else:
            try:
                found[name] = attempt(kind, IMPORT_LIMIT_S)
                continue
            except AdapterFault as fault:
                reason = str(fault)
        faults.append((name, f"{short(path)}: {reason}"))
    return found, faults


def _classes(files: Iterable[File], faults: list[tuple[str, str]]) -> Iterator[tuple[Path, list[type[Implementation]]]]:
    """Each file with the adapters that it defines; adds those of a file that cannot be imported to `faults`."""
    for path, load in files:
        try:
            module = attempt(load, IMPORT_LIMIT_S)
        except AdapterFault as fault:
            faults += [(name, f"{short(path)}: {fault}") for name in _names(path) or [path.stem]]
            continue
        own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
        yield path, [kind for kind in own if issubclass(kind, Implementation) and kind is not Implementation]


def _names(path: Path) -> list[str]:
    """The names that a file gives its adapters, by its text."""
    return NAME_LINE.findall(path.read_text(errors="replace", encoding="utf-8"))


def _folders() -> list[Path]:
    return [Path(folder).expanduser() for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]


def _files() -> Iterator[File]:
    for info in pkgutil.iter_modules([str(ROOT / BASELINES)]):
        if not info.ispkg:
            module = f"{tritonmoe_bench.__name__}.{BASELINES}.{info.name}"
            yield ROOT / BASELINES / f"{info.name}.py", functools.partial(importlib.import_module, module)
    for folder in _folders():
        for path in sorted(folder.glob("*.py")):
            yield path, functools.partial(_import_file, path)


def _import_file(path: Path) -> ModuleType:
    name = f"tritonmoe_adapter_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def short(path: Path) -> str:
    """A path as messages name it: inside of the checkout from there on."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path)


def described(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def get(name: str) -> Implementation:
    """The implementation of that name. Raises ValueError that says why it is broken, or names all there are.

    Imports the one file that has it, where its text shows that, so that another one that hangs costs no time.
    """
    naming = [file for file in _files() if name in _names(file[0])]
    if len(naming) == 1:
        [found, _] = _adapters(naming)
        if name in found:
            return found[name]
    if name not in implementations():
        reason = dict(broken()).get(name) or f"allowed are {', '.join(implementations())}"
        raise ValueError(f"implementation {name!r}: {reason}")
    return implementations()[name]
