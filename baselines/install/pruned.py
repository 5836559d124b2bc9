"""Trees in .peers that hold a part of a system, file by file as it was published (baselines/builds/offline)."""

from __future__ import annotations

import importlib
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from . import tree


def folder(name: str) -> Path:
    return tree.FOLDER / name


def record(name: str) -> dict[str, Any]:
    """BUILD.json of the tree `name`; empty if there is none."""
    path = folder(name) / "BUILD.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def search_path(name: str) -> list[Path]:
    """The tree that holds the package `name`, for sys.path; empty if it is not there."""
    return [folder(name)] if record(name) and (folder(name) / name).is_dir() else []


def importable(name: str) -> AbstractContextManager[None]:
    """Inside, imports of what the tree lacks succeed, and fail in use; an installed package lacks nothing."""
    return importlib.import_module(f"pruned_{name}").importable() if search_path(name) else nullcontext()
