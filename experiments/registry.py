"""Finds every implementation: the subclasses of `Implementation` in baselines/ and experiments/pipelines/.

Adapters that lie elsewhere join in by TRITONMOE_ADAPTERS, a list of folders with one file a system, as in baselines/.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from .. import baselines
from ..baselines.contract import Implementation
from . import pipelines

HERE = Path(__file__).resolve().parent
SHARED_CODE = (
    HERE / "case.py",
    HERE / "workload.py",
    HERE / "settings.py",
    HERE / "timing.py",
    HERE / "measure.py",
    HERE.parent / "kernels" / "gating.py",
    HERE.parent / "baselines" / "contract.py",
)
"""What every measurement depends on: a change here makes every row stale."""


@functools.cache
def implementations() -> dict[str, Implementation]:
    """Every implementation by name, sorted by name."""
    found: dict[str, Implementation] = {}
    for module in _modules():
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and issubclass(kind, Implementation) and hasattr(kind, "name"):
                if kind.name in found:
                    raise ValueError(f"two implementations are called {kind.name}: rename one of them")
                found[kind.name] = kind()
    return dict(sorted(found.items()))


def _modules() -> Iterator[ModuleType]:
    for package in (baselines, pipelines):
        for info in pkgutil.iter_modules(package.__path__):
            if not info.ispkg:
                yield importlib.import_module(f"{package.__name__}.{info.name}")
    for folder in filter(None, os.environ.get("TRITONMOE_ADAPTERS", "").split(os.pathsep)):
        for path in sorted(Path(folder).glob("*.py")):
            name = f"tritonmoe_adapter_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield module


def get(name: str) -> Implementation:
    """The implementation of that name. Raises ValueError that names all there are."""
    try:
        return implementations()[name]
    except KeyError:
        raise ValueError(f"implementation {name!r}: allowed are {', '.join(implementations())}") from None


def code_hash(implementation: Implementation) -> str:
    """Hash of the sources that decide what is measured: workload, timing, the adapter and the files that it names."""
    digest = hashlib.sha256()
    for path in sorted({*SHARED_CODE, Path(inspect.getfile(type(implementation))), *implementation.code()}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
