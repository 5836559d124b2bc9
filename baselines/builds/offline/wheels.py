"""What the prune tools share: packages from pip, files into a tree, and libraries without what is not needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from assemble import assembled, tools
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


def library(data: bytes, arch: str, with_ptx: bool = False) -> bytes:
    """A CUDA library without its symbol table, where `strip` is there, and without the code of other architectures.

    arch: as in "9.0", or "all"; with_ptx: kernels that it has as PTX alone are kept too, as machine code where CUDA's
    tools are there. Raises fatbin.FatbinError.
    """
    if shutil.which("strip"):
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(data)
            file.flush()
            subprocess.run(["strip", "--strip-all", file.name], check=True)
            data = Path(file.name).read_bytes()
    if arch == "all":
        return data
    number, found = int(arch.replace(".", "")), tools()

    def of_ptx(container: bytes) -> bytes:
        return assembled(container, number, found) if found else container

    return keep_architecture(data, number, of_ptx if with_ptx else None)


def write(path: Path, data: bytes) -> None:
    """Writes a file, in folders that are made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def size_of(tree: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
