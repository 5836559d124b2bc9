"""Folders that the tools of baselines/builds make, and what they were made for, by the BUILD.json in each."""

from __future__ import annotations

import importlib
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tritonmoe_bench import ROOT

FOLDER = ROOT / ".peers"


def folder(name: str) -> Path:
    return FOLDER / name


def record(made: Path) -> dict[str, Any]:
    """BUILD.json of a folder that was made; empty if there is none."""
    path = made / "BUILD.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def search_path(name: str) -> list[Path]:
    """The folder .peers/<name> that holds the package `name`, for sys.path; empty if it is not there."""
    made = folder(name)
    return [made] if record(made) and (made / name).is_dir() else []


def importable(name: str) -> AbstractContextManager[None]:
    """Inside, imports of what the tree lacks succeed, and fail in use; an installed package lacks nothing."""
    return importlib.import_module(f"pruned_{name}").importable() if search_path(name) else nullcontext()


def wrong_gpu(made: Path, capability: tuple[int, int], make: str) -> str:
    """Why the machine code in a folder does not run on this GPU, with the command that would mend it; empty if it does.

    Machine code serves its own generation, from its own minor version on. BUILD.json has `arch` as in "9.0",
    "8.0;9.0+PTX" or "all".
    """
    arch = record(made).get("arch", "all")
    versions = [tuple(map(int, part.removesuffix("+PTX").split("."))) for part in arch.split(";") if part != "all"]
    if not versions or any(major == capability[0] and minor <= capability[1] for major, minor in versions):
        return ""
    have = f"{capability[0]}.{capability[1]}"
    place = made.relative_to(ROOT) if made.is_relative_to(ROOT) else made
    return f"{place} was made for compute capability {arch}, this GPU has {have}: {make} --arch {have}"
