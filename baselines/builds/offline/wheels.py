"""What the prune tools share: packages from pip, files into a tree, and libraries without what is not needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fatbin import keep_architecture


class PruneError(Exception):
    """Why no tree can be made, and what to do."""


def download(requirement: str, folder: Path, *options: str, instead: str) -> None:
    """Has pip put a package's file into the folder, from the index that it is set up for. Raises PruneError.

    instead: what to give the tool where there is no index.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), *options, requirement]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise PruneError(f"pip cannot download {requirement}: {instead}")


def library(data: bytes, arch: str) -> bytes:
    """A CUDA library without its symbol table, where `strip` is there, and without the code of other architectures.

    arch: as in "9.0", or "all". Raises fatbin.FatbinError.
    """
    if shutil.which("strip"):
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(data)
            file.flush()
            subprocess.run(["strip", "--strip-all", file.name], check=True)
            data = Path(file.name).read_bytes()
    return data if arch == "all" else keep_architecture(data, int(arch.replace(".", "")))


def write(path: Path, data: bytes) -> None:
    """Writes a file, in folders that are made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def size_of(tree: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
