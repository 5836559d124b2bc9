"""Finds every implementation: the subclasses of `Implementation` in baselines/.

TRITONMOE_ADAPTERS lists further folders with one file per system. No room imports baselines/: its modules are found and
imported by name, when somebody first asks.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import tritonmoe_bench
from tritonmoe_bench import ROOT

from .contract import Implementation

BASELINES = "baselines"
"""The folder of the adapters, and the package that they are imported from."""
NEEDED = ("name", "family", "source")
"""Class attributes every adapter needs. `name` must be set on the class itself; the others may be inherited."""
NAME_LINE = re.compile(r"""^\s+name\b[^=\n]*=\s*["'](\w+)["']""", re.MULTILINE)
"""The line that names an adapter, for files that cannot be imported."""


def implementations() -> dict[str, Implementation]:
    """Every implementation by name, sorted by name, without those that are `broken`."""
    return adapters()[0]


def broken() -> list[tuple[str, str]]:
    """(name, file and reason) of each faulty adapter; where its name cannot be told, that of its file stands for it."""
    return adapters()[1]


@functools.cache
def adapters() -> tuple[dict[str, Implementation], list[tuple[str, str]]]:
    """What `implementations` and `broken` give. A faulty file costs its own adapters and no others."""
    found: dict[str, Implementation] = {}
    faults: list[tuple[str, str]] = []
    called: dict[str, list[tuple[Path, type[Implementation]]]] = {}
    for path, kinds in _classes(faults):
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
                found[name] = kind()
                continue
            except Exception as error:
                reason = described(error)
        faults.append((name, f"{short(path)}: {reason}"))
    return found, faults


def _classes(faults: list[tuple[str, str]]) -> Iterator[tuple[Path, list[type[Implementation]]]]:
    """Each file with the adapters that it defines; adds those of a file that cannot be imported to `faults`."""
    for path, load in _files():
        try:
            module = load()
        except Exception as error:
            hint = "; import the system inside check, version and build only" if isinstance(error, ImportError) else ""
            names = NAME_LINE.findall(path.read_text(errors="replace", encoding="utf-8")) or [path.stem]
            faults += [(name, f"{short(path)}: {described(error)}{hint}") for name in names]
            continue
        own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
        yield path, [kind for kind in own if issubclass(kind, Implementation) and kind is not Implementation]


def _files() -> Iterator[tuple[Path, Callable[[], ModuleType]]]:
    """Each file that may hold adapters, and what imports it."""
    for info in pkgutil.iter_modules([str(ROOT / BASELINES)]):
        if not info.ispkg:
            module = f"{tritonmoe_bench.__name__}.{BASELINES}.{info.name}"
            yield ROOT / BASELINES / f"{info.name}.py", functools.partial(importlib.import_module, module)
    for folder in filter(None, os.environ.get("TRITONMOE_ADAPTERS", "").split(os.pathsep)):
        for path in sorted(Path(folder).glob("*.py")):
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


def described(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def get(name: str) -> Implementation:
    """The implementation of that name. Raises ValueError that says why it is broken, or names all there are."""
    if name not in implementations():
        reason = dict(broken()).get(name) or f"allowed are {', '.join(implementations())}"
        raise ValueError(f"implementation {name!r}: {reason}")
    return implementations()[name]
