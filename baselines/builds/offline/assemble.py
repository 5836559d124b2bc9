"""Machine code from the PTX of a CUDA library, ahead of time.

A library may hold no machine code for a GPU and leave its PTX to the driver, which compiles a whole source file when
one of its kernels is first used: half a minute for one of Marlin's, in every process of a machine whose cache is cold.
Here CUDA's own tools (cuobjdump, ptxas, fatbinary) do it once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

TOOLS = ("cuobjdump", "ptxas", "fatbinary")


def tools() -> dict[str, str] | None:
    """The command of each of `TOOLS`: of CUDA, or as Triton ships it. None if one is missing."""
    triton = find_spec("triton")
    places = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"]
    places += (
        [f"{folder}/backends/nvidia/bin" for folder in (triton.submodule_search_locations or [])] if triton else []
    )
    found = {tool: shutil.which(tool, path=os.pathsep.join(places)) for tool in TOOLS}
    return {tool: path for tool, path in found.items() if path} if all(found.values()) else None


def assembled(container: bytes, arch: int, found: dict[str, str]) -> bytes:
    """A container with machine code for a GPU of `arch` (90 for 9.0), from one that holds PTX alone.

    found: as of `tools`. Raises subprocess.CalledProcessError for PTX that ptxas does not take.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "given.fatbin").write_bytes(container)
        _run(folder, found["cuobjdump"], "-xptx", "all", "given.fatbin")
        (ptx,) = folder.glob("*.ptx")
        _run(folder, found["ptxas"], f"-arch=sm_{arch}", ptx.name, "-o", "made.cubin")
        image = f"--image3=kind=elf,sm={arch},file=made.cubin"
        _run(folder, found["fatbinary"], "--create=made.fatbin", "-64", "--compress-all", image)
        return (folder / "made.fatbin").read_bytes()


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
