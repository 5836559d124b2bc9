"""The folder .peers, which baselines/builds/offline/prune_vllm.py makes of vLLM's wheel, and what it was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tritonmoe_bench import ROOT

FOLDER = ROOT / ".peers"
VLLM_VERSION = "0.22.1"
INSTALL = f"pip install vllm=={VLLM_VERSION}"
PRUNE = "python baselines/builds/offline/prune_vllm.py"


def record() -> dict[str, Any]:
    """BUILD.json of .peers; empty if there is none."""
    path = FOLDER / "BUILD.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def folders(name: str) -> list[Path]:
    """The folder of .peers that holds the package `name`, as a search path; empty if it is not there."""
    folder = FOLDER / name
    return [folder] if record() and (folder / name).is_dir() else []


def installed_version(distribution: str) -> str:
    """Version by the metadata on sys.path, empty if there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def wrong_gpu(capability: tuple[int, int]) -> str:
    """Machine code serves its own generation, from its own minor version on; empty if .peers has it, or all."""
    arch = record().get("arch", "all")
    if arch == "all":
        return ""
    major, minor = (int(part) for part in arch.split("."))
    if major == capability[0] and minor <= capability[1]:
        return ""
    have = f"{capability[0]}.{capability[1]}"
    return f".peers was made for compute capability {arch}, this GPU has {have}: {PRUNE} --arch {have}"
