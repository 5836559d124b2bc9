"""Bytes that kernels move, counted access by access in Triton's interpreter, and accesses out of bounds as errors.

    with count_bytes() as counter:
        forward(x)
    counter.total("gate_up_kernel", "x_ptr").read_bytes

A pointer is followed from the argument that it came from (through addition, splat, broadcast, ...), so that arguments
which alias or lie side by side in one buffer are told apart; where an operation loses the trail, its address decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from . import interpreter

SECTOR_BYTES = 32
"""The unit in which NVIDIA's caches and DRAM are read."""

Kind = Literal["read", "write", "atomic"]


class OutOfBoundsError(IndexError):
    """A lane that no mask holds back touched an address outside of its argument."""


class Extent(NamedTuple):
    """Addresses [start, end) of one tensor argument, from its first element to its last; of a view, only the view's."""

    name: str
    start: int
    end: int


@dataclass
class Traffic:
    """What one argument of one launch saw. An atomic reads and writes its element, and counts as both.

    read_bytes, write_bytes: every lane that is not masked off. unique_*: each byte once. *_sectors: distinct 32-byte
    sectors, each load or store of a tile taken as one access. atomics: lanes of atomic operations.
    """

    read_bytes: int = 0
    write_bytes: int = 0
    unique_read_bytes: int = 0
    unique_write_bytes: int = 0
    read_sectors: int = 0
    write_sectors: int = 0
    atomics: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


@dataclass
class Launch:
    """One launch of a kernel: its name and the traffic of every tensor argument, by the parameter's name."""

    kernel: str
    extents: dict[str, Extent]
    arguments: dict[str, Traffic] = field(default_factory=dict)


@dataclass
class Counter:
    """The launches of a `count_bytes` block, in order."""

    launches: list[Launch] = field(default_factory=list)

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

    def on_access(launch: Launch, pointers: Any, addresses: np.ndarray, size: int, kind: Kind) -> None:
        _locate(launch, pointers, addresses, size, kind)

    with _watch(lambda launch: None, on_access, lambda launch: None):
        yield


@contextmanager
def count_bytes() -> Iterator[Counter]:
    """Counts the traffic of every launch inside of the block; out-of-bounds accesses are errors here too.

    Raises RuntimeError if the interpreter is off.
    """
    counter = Counter()
    marks: dict[tuple[str, str], np.ndarray] = {}
    owners: dict[str, np.ndarray] = {}

    def on_launch(launch: Launch) -> None:
        counter.launches.append(launch)
        launch.arguments = {name: Traffic() for name in launch.extents}

    def on_access(launch: Launch, pointers: Any, addresses: np.ndarray, size: int, kind: Kind) -> None:
        for extent, lanes in _locate(launch, pointers, addresses, size, kind):
            traffic = launch.arguments[extent.name]
            offsets = lanes.ravel() - np.uint64(extent.start)
            sectors = _distinct_sectors(lanes.ravel(), extent, owners)
            traffic.atomics += offsets.size if kind == "atomic" else 0
            if kind != "write":
                traffic.read_bytes += offsets.size * size
                traffic.read_sectors += sectors
                _mark(marks, ("read", extent.name), extent, offsets, size)
            if kind != "read":
                traffic.write_bytes += offsets.size * size
                traffic.write_sectors += sectors
                _mark(marks, ("write", extent.name), extent, offsets, size)

    def on_end(launch: Launch) -> None:
        for (way, name), touched in marks.items():
            setattr(launch.arguments[name], f"unique_{way}_bytes", int(touched.sum(dtype=np.int64)))
        marks.clear()
        owners.clear()

    with _watch(on_launch, on_access, on_end):
        yield counter


def _mark(marks: dict, key: tuple[str, str], extent: Extent, offsets: np.ndarray, size: int) -> None:
    """Sets one flag a byte, a whole element at a time."""
    if key not in marks:
        marks[key] = np.zeros(-(-(extent.end - extent.start) // 8) * 8, dtype=np.uint8)
    unit = np.dtype(f"u{size}")
    marks[key].view(unit)[offsets // np.uint64(size)] = int.from_bytes(b"\x01" * size, "little")


def _distinct_sectors(addresses: np.ndarray, extent: Extent, owners: dict[str, np.ndarray]) -> int:
    first = extent.start // SECTOR_BYTES
    if extent.name not in owners:
        owners[extent.name] = np.empty(extent.end // SECTOR_BYTES - first + 1, dtype=np.int64)
    sectors = addresses // np.uint64(SECTOR_BYTES) - np.uint64(first)
    lanes = np.arange(addresses.size)
    # The last lane to write to a sector owns it: one owner a sector, with nothing to sort or to clear.
    owner = owners[extent.name]
    owner[sectors] = lanes
    return int(np.count_nonzero(owner[sectors] == lanes))


def _locate(
    launch: Launch, pointers: Any, addresses: np.ndarray, size: int, kind: Kind
) -> list[tuple[Extent, np.ndarray]]:
    """The argument of every lane, as (extent, its lanes); raises OutOfBoundsError for a lane that has none."""
    first, last = int(addresses.min()), int(addresses.max()) + size
    argument = pointers.attr.get("argument")
    if argument is not None:
        extent = launch.extents[argument]
        if first < extent.start or last > extent.end:
            raise _out_of_bounds(launch, extent, first if first < extent.start else last - size, size, kind)
        return [(extent, addresses)]
    for extent in launch.extents.values():
        if extent.start <= first and last <= extent.end:
            return [(extent, addresses)]
    parts = []
    rest = addresses.ravel()
    for extent in launch.extents.values():
        inside = (rest >= extent.start) & (rest + np.uint64(size) <= extent.end)
        if inside.any():
            parts.append((extent, rest[inside]))
            rest = rest[~inside]
    if rest.size:
        address = int(rest[0])
        nearest = min(launch.extents.values(), key=lambda e: max(e.start - address, address + size - e.end))
        raise _out_of_bounds(launch, nearest, address, size, kind)
    return parts


def _out_of_bounds(launch: Launch, extent: Extent, address: int, size: int, kind: Kind) -> OutOfBoundsError:
    return OutOfBoundsError(
        f"{launch.kernel}: {kind} of {extent.name} at element {(address - extent.start) // size}, "
        f"but its {size}-byte elements are 0 to {(extent.end - extent.start) // size - 1}"
    )


PASS_ON = (
    "create_addptr",
    "create_splat",
    "create_broadcast",
    "create_expand_dims",
    "create_reshape",
    "create_bitcast",
)
"""Operations of the interpreter that make pointers from one pointer; of the others the address must tell."""


@contextmanager
def _watch(
    on_launch: Callable[[Launch], None],
    on_access: Callable[[Launch, Any, np.ndarray, int, Kind], None],
    on_end: Callable[[Launch], None],
) -> Iterator[None]:
    """Calls back at the start of every launch, for every access with a lane that is not masked off, and at its end."""
    interpreter.require()
    from triton.runtime import interpreter as triton_interpreter
    from triton.runtime.errors import InterpreterError

    builder, executor = triton_interpreter.InterpreterBuilder, triton_interpreter.GridExecutor
    current: list[Launch] = []
    names: dict[int, str] = {}

    def access(pointers: Any, mask: Any, kind: Kind) -> None:
        mask = np.asarray(mask)
        addresses = pointers.data if mask.all() else pointers.data[np.broadcast_to(mask, pointers.data.shape)]
        if addresses.size:
            size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            on_access(current[-1], pointers, addresses, size, kind)

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        access(ptrs, mask.data, "read")
        return original["create_masked_load"](self, ptrs, mask, *rest, **named)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        access(ptrs, mask.data, "write")
        return original["create_masked_store"](self, ptrs, value, mask, *rest, **named)

    def atomic_rmw(self: Any, op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        access(ptr, mask.data, "atomic")
        return original["create_atomic_rmw"](self, op, ptr, value, mask, *rest)

    def atomic_cas(self: Any, ptr: Any, *rest: Any) -> Any:
        access(ptr, True, "atomic")
        return original["create_atomic_cas"](self, ptr, *rest)

    def pass_on(name: str) -> Callable:
        create = getattr(builder, name)
        # The pointer is the first operand, except that a splat names its type first.
        position = 1 if name == "create_splat" else 0

        def passing(self: Any, *operands: Any) -> Any:
            made = create(self, *operands)
            argument = operands[position].attr.get("argument")
            if argument is not None:
                made.attr["argument"] = argument
            return made

        return passing

    def init_args(self: Any, args: Any, kwargs: Any) -> Any:
        args_host, kwargs_host = original["_init_args_hst"](self, args, kwargs)
        extents: dict[str, Extent] = {}
        names.clear()
        for name, value in inspect.getcallargs(self.fn, *args_host, **kwargs_host).items():
            for part, tensor in _tensors(name, value):
                extents[part] = _extent(part, tensor)
                names[id(tensor)] = part
        current[-1] = Launch(self.fn.__name__, extents)
        on_launch(current[-1])
        return args_host, kwargs_host

    def implicit_cvt(arg: Any) -> Any:
        converted = original["_implicit_cvt"](arg)
        if id(arg) in names:
            converted.handle.attr["argument"] = names[id(arg)]
        return converted

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        current.append(Launch("", {}))
        try:
            original["__call__"](self, *args, **kwargs)
        except InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, OutOfBoundsError):
                    raise cause from None
                cause = cause.__cause__
            raise
        finally:
            on_end(current.pop())
            names.clear()

    patches: list[tuple[Any, str, Callable]] = [
        (builder, "create_masked_load", masked_load),
        (builder, "create_masked_store", masked_store),
        (builder, "create_atomic_rmw", atomic_rmw),
        (builder, "create_atomic_cas", atomic_cas),
        *((builder, name, pass_on(name)) for name in PASS_ON),
        (executor, "_init_args_hst", init_args),
        (executor, "__call__", call),
        (triton_interpreter, "_implicit_cvt", implicit_cvt),
    ]
    original = {name: getattr(owner, name) for owner, name, _ in patches}
    for owner, name, patched in patches:
        setattr(owner, name, patched)
    try:
        yield
    finally:
        for owner, name, _ in patches:
            setattr(owner, name, original[name])


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        for position, part in enumerate(value):
            yield from _tensors(f"{name}[{position}]", part)
    elif hasattr(value, "block_shape"):  # a tensor descriptor
        yield from _tensors(name, value.base)
    elif hasattr(value, "data_ptr"):
        yield name, value


def _extent(name: str, argument: Any) -> Extent:
    tensor = getattr(argument, "base", argument)  # triton.reinterpret wraps the tensor
    start = argument.data_ptr()
    if tensor.numel() == 0:
        return Extent(name, start, start)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return Extent(name, start, start + (last + 1) * tensor.element_size())
