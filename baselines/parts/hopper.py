"""Whether a library that is compiled here for Hopper can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..install import trees

CAPABILITY = (9, 0)


def problem(name: str, folder: Path, make: str, needs: str, load: Callable[[], object], gpu: bool = True) -> str:
    """Why a library cannot run in this process, with the command `make` that would mend it; empty if it can.

    name: of what it computes with; folder: of its build; needs: what the build takes; load: loads it, or raises OSError
    or AttributeError; gpu: whether it is of no use without one.
    """
    import torch

    if not trees.record(folder):
        return f"{name} is not compiled: {make} (needs {needs})"
    if gpu and not torch.cuda.is_available():
        return f"{name} needs an NVIDIA GPU"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() != CAPABILITY:
        have = "{}.{}".format(*torch.cuda.get_device_capability())
        return f"{name} is compiled for Hopper (compute capability 9.0), this GPU has {have}"
    try:
        load()
    except (OSError, AttributeError) as error:
        return f"{error}: {make}"
    return ""
