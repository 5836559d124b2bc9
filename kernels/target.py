"""What a GPU can do, asked in one place: tiles, and every feature that only one vendor has, are chosen by it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

MORE_WARPS = tuple(int(part) for part in triton.__version__.split(".")[:2]) > (3, 6)
"""Whether the compiler is newer than Triton 3.6, with which all GPUs were measured: it gives the threads of some
programs of the output-centric path too few registers, and twice as many threads need fewer."""


@dataclass(frozen=True)
class Target:
    """nvidia_major: NVIDIA's major compute capability, 0 elsewhere.

    shared_memory_bytes: the most that one program may take, 0 in Triton's interpreter, where there is no such limit.
    """

    shared_memory_bytes: int
    nvidia_major: int

    @property
    def is_amd(self) -> bool:
        return not self.nvidia_major and self.shared_memory_bytes > 0

    @property
    def has_bulk_copies(self) -> bool:
        """Tiles by the copy engine, through tensor descriptors that the host makes."""
        return self.nvidia_major >= 9

    @property
    def has_fp8(self) -> bool:
        """Matrix units that multiply e4m3."""
        return self.nvidia_major >= 9

    @property
    def has_dependent_launch(self) -> bool:
        """Programmatic dependent launch, see pdl.py."""
        return self.nvidia_major >= 9


INTERPRETER = Target(0, 0)


@functools.cache
def target_of(device: torch.device) -> Target:
    """The target that a device is."""
    if device.type == "cpu":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    return Target(shared, 0 if torch.version.hip else torch.cuda.get_device_capability(device)[0])
