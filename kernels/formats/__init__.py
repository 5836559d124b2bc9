"""Weight formats: how the experts' weights are packed, one file a format, in the layout of published checkpoints.

Each format is a small dataclass that holds the packed values and their scales, packs from and unpacks to ordinary
tensors, and knows its bytes. `formats` finds them by name; a new one is a file here with a subclass of
`Packed`. PyTorch is loaded when weights are packed, so that bytes can be told without it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from .packed import Packed

__all__ = ["Packed", "formats"]


@functools.cache
def formats() -> dict[str, type[Packed]]:
    """Every weight format by name: the subclasses of `Packed` in the files of this folder."""
    found: dict[str, type[Packed]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Packed) and kind.__module__ == module.__name__
            if own and "name" in vars(kind):
                found[kind.name] = kind
    return dict(sorted(found.items()))
