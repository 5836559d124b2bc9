"""Finds the figures: every module of this folder that defines NAME, TITLE, STUDIES and draw(results) -> Figure.

A faulty one costs no other: it is left out, and `broken` says why. TITLE says what the figure shows; the sentence above
it, which says what its rows say, is the figure's own and comes from them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from tritonmoe_bench import ROOT, plots
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.checkout import one_line

REQUIRED = ("NAME", "TITLE", "STUDIES", "draw")
STUDY_CONF = ROOT / "conf" / "study"
NO_SWEEP = ("portability", "tune")
"""What has a CSV of its own that no study of conf/ writes."""


@dataclass(frozen=True)
class Picture:
    """name: of the files; title: above the figure; studies: the CSVs that it is drawn from, the one that it cannot
    do without first; file: its module."""

    name: str
    title: str
    studies: tuple[str, ...]
    draw: Callable[[Results], Figure]
    file: str


def figures() -> dict[str, Picture]:
    """Every figure by name, without those that are `broken`."""
    return scan()[0]


def broken() -> list[str]:
    """File and fault of each module that is to be a figure and is none."""
    return scan()[1]


@functools.cache
def scan() -> tuple[dict[str, Picture], list[str]]:
    """What `figures` and `broken` give."""
    pictures: dict[str, Picture] = {}
    faults: list[str] = []
    for info in pkgutil.iter_modules(plots.__path__):
        if info.ispkg:
            continue
        file = f"plots/{info.name}.py"
        try:
            module = importlib.import_module(f"{plots.__name__}.{info.name}")
        except Exception as error:
            faults.append(f"{file}: {described(error)}")
            continue
        lacking = [name for name in REQUIRED if not hasattr(module, name)]
        if lacking:
            if len(lacking) < len(REQUIRED):  # else it is no figure
                faults.append(f"{file}: a figure lacks {', '.join(lacking)}")
            continue
        studies = (module.STUDIES,) if isinstance(module.STUDIES, str) else tuple(module.STUDIES)
        known = sorted([*NO_SWEEP, *(path.stem for path in STUDY_CONF.glob("*.yaml"))])
        unknown = [study for study in studies if study not in known]
        if module.NAME in pictures:
            faults.append(f"{file}: {pictures[module.NAME].file} is called {module.NAME} too: rename one of them")
        elif unknown:
            faults.append(f"{file}: STUDIES has {', '.join(unknown)}: allowed are {', '.join(known)}")
        else:
            pictures[module.NAME] = Picture(module.NAME, module.TITLE, studies, module.draw, file)
    return pictures, faults


def described(error: Exception) -> str:
    """An error in one line, below its traceback where that helps."""
    text = one_line(error)
    if text is None:
        traceback.print_exception(error)
    return text or " ".join(f"{type(error).__name__}: {error}".split())
