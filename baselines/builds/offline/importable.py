"""Gives a pruned tree the package `pruned_<name>`, by which it is imported although modules are missing (absent.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
INIT = """\"\"\"How to import the pruned tree beside this: `with importable(): import ...`\"\"\"

from .absent import answering

ROOTS = (
{roots}
)


def importable():
    return answering(ROOTS)
"""


def add_to(tree: Path, name: str, roots: tuple[str, ...]) -> None:
    """Makes `tree` importable: `roots` are the packages of which modules may be missing, the tree's own first."""
    package = tree / f"pruned_{name}"
    package.mkdir(parents=True)
    for file in ("absent.py", "left_out.py"):
        shutil.copy(HERE / file, package / file)
    (package / "__init__.py").write_text(
        INIT.format(roots="\n".join(f"    {root!r}," for root in roots)), encoding="utf-8"
    )
