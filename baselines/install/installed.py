"""What is installed in this interpreter, and why something cannot be imported."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NVCC = Path("/usr/local/cuda/bin/nvcc")
"""Where CUDA's installer puts the compiler, often not on PATH."""


def installed_version(distribution: str) -> str:
    """The version by the metadata on sys.path; empty if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def first_line(error: BaseException) -> str:
    """An exception's kind and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def find_nvcc() -> str:
    """CUDA's compiler: that of CUDA_HOME or CUDA_PATH, on PATH, or in its usual place; empty if there is none."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    named = next((str(folder / "nvcc") for folder in folders if (folder / "nvcc").exists()), "")
    return named or shutil.which("nvcc") or (str(NVCC) if NVCC.exists() else "")
