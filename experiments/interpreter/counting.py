"""Bytes that kernels move, counted access by access in Triton's interpreter, and accesses out of bounds as errors.

with count_bytes() as counter:
    forward(x)
counter.total("gate_up_kernel", "x_ptr").read_bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import numpy as np

from .accesses import Extent, Kind, Launch, watch


@dataclass
class Traffic:
    """What one argument of one launch saw. An atomic reads and writes its element, and counts as both.

    read_bytes, write_bytes: every lane that is not masked off. unique_*: each byte once.
    """

    read_bytes: int = 0
    write_bytes: int = 0
    unique_read_bytes: int = 0
    unique_write_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


@dataclass(frozen=True)
class LaunchTraffic:
    """The traffic of one launch of a kernel, by the parameter's name of every tensor argument."""

    kernel: str
    arguments: dict[str, Traffic]


@dataclass
class Counter:
    """The launches of a `count_bytes` block, in order."""

    launches: list[LaunchTraffic] = field(default_factory=list)

    def total(self, kernel: str, argument: str) -> Traffic:
        """Sum over the kernel's launches; bytes are unique within a launch. KeyError if it never had the argument."""
        seen = [launch.arguments[argument] for launch in self.launches if launch.kernel == kernel]
        if not seen:
            raise KeyError(f"{kernel} was not launched; launched were {sorted({x.kernel for x in self.launches})}")
        return sum(seen, Traffic())


@contextmanager
def forbid_out_of_bounds() -> Iterator[None]:
    """While open, an unmasked access outside of its tensor argument ends the launch with `OutOfBoundsError`.

    The message names kernel, argument and offset. Raises RuntimeError if the interpreter is off.
    """
    with watch(lambda launch: None, lambda extent, lanes, size, kind: None, lambda: None):
        yield


@contextmanager
def count_bytes() -> Iterator[Counter]:
    """Counts the traffic of every launch inside of the block; out-of-bounds accesses are errors here too.

    Raises RuntimeError if the interpreter is off.
    """
    counter = Counter()
    marks: dict[tuple[str, str], np.ndarray] = {}

    def on_launch(launch: Launch) -> None:
        counter.launches.append(LaunchTraffic(launch.kernel, {name: Traffic() for name in launch.extents}))

    def on_access(extent: Extent, lanes: np.ndarray, size: int, kind: Kind) -> None:
        traffic = counter.launches[-1].arguments[extent.name]
        offsets = lanes.ravel() - np.uint64(extent.start)
        if kind != "write":
            traffic.read_bytes += offsets.size * size
            _mark(marks, ("read", extent.name), extent, offsets, size)
        if kind != "read":
            traffic.write_bytes += offsets.size * size
            _mark(marks, ("write", extent.name), extent, offsets, size)

    def on_end() -> None:
        for (way, name), touched in marks.items():
            unique = int(touched.sum(dtype=np.int64))
            setattr(counter.launches[-1].arguments[name], f"unique_{way}_bytes", unique)
        marks.clear()

    with watch(on_launch, on_access, on_end):
        yield counter


def _mark(marks: dict, key: tuple[str, str], extent: Extent, offsets: np.ndarray, size: int) -> None:
    """Sets one flag a byte, a whole element at a time."""
    if key not in marks:
        marks[key] = np.zeros(-(-(extent.end - extent.start) // 8) * 8, dtype=np.uint8)
    unit = np.dtype(f"u{size}")
    marks[key].view(unit)[offsets // np.uint64(size)] = int.from_bytes(b"\x01" * size, "little")
