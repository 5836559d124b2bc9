"""Makes a pruned package importable: a module that the tree leaves out is there in name, and fails when it is used.

importable.py puts this file into a tree. The files of the tree stay as they were published: what they import and the
tree lacks is answered by a finder, last in line, so that whatever is installed, or in the tree, comes first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

from .left_out import LeftOut


class AbsentModule(types.ModuleType):
    """A module of which every name is a LeftOut."""

    __path__: list[str] = []  # noqa: RUF012 - a package, so that its submodules can be asked for

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return LeftOut(f"{self.__name__}.{name}")


class AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for the packages `roots` and everything below them, where no other finder did."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self.roots = frozenset(roots)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in self.roots:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module) -> None:
        """Nothing runs: the names are made when they are asked for."""


@contextmanager
def answering(roots: tuple[str, ...]) -> Iterator[None]:
    """Inside, imports of `roots` succeed. What stood in for a module is gone afterwards, for others who look for it."""
    finder = AbsentFinder(roots)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, AbsentModule)]:
            del sys.modules[name]
