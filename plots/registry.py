"""Finds the figures: every module of this folder that defines NAME, TITLE, STUDIES and draw(results) -> Figure."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .data import Results


@dataclass(frozen=True)
class Picture:
    """name: of the files; title: above the figure; studies: the CSVs that it needs, all of them."""

    name: str
    title: str
    studies: tuple[str, ...]
    draw: Callable[[Results], Figure]


@functools.cache
def figures() -> dict[str, Picture]:
    """Every figure by name. Raises ValueError if two have one name."""
    found: dict[str, Picture] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{__package__}.{info.name}")
        if hasattr(module, "NAME"):
            if module.NAME in found:
                raise ValueError(f"two figures are called {module.NAME}: rename one of them")
            found[module.NAME] = Picture(module.NAME, module.TITLE, tuple(module.STUDIES), module.draw)
    return found
