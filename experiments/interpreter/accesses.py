"""Calls back at every memory access of every kernel in Triton's interpreter, and refuses those out of bounds.

A pointer is followed from the argument that it came from (through addition, splat, broadcast, ...), so that arguments
which alias or lie side by side in one buffer are told apart; where an operation loses the trail, its address decides.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from . import repair

Kind = Literal["read", "write", "atomic"]


class OutOfBoundsError(IndexError):
    """A lane that no mask holds back touched an address outside of its argument."""


class Extent(NamedTuple):
    """Addresses [start, end) of one tensor argument, from its first element to its last; of a view, only the view's."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its name, and the addresses of every tensor argument by the parameter's name."""

    kernel: str
    extents: dict[str, Extent]


OnAccess = Callable[[Extent, np.ndarray, int, Kind], None]
"""Given the argument, the addresses of the lanes that are not masked off, the bytes of each, and what they do."""

PASS_ON = {
    "create_addptr": 0, "create_splat": 1, "create_broadcast": 0, "create_expand_dims": 0, "create_reshape": 0,
    "create_bitcast": 0,
}  # fmt: skip
"""Operations of the interpreter that make pointers from one pointer, and its place among their operands; of the others
the address must tell."""


@contextmanager
def watch(
    on_launch: Callable[[Launch], None],
    on_access: OnAccess,
    on_end: Callable[[], None],
) -> Iterator[None]:
    """Calls back at the start of every launch, for every access that has a lane not masked off, and at the end.

    An access out of bounds ends the launch with `OutOfBoundsError`. Raises RuntimeError if the interpreter is off.
    """
    repair.require()
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    watcher = _Watcher(on_launch, on_access, on_end)
    wrappers: list[tuple[Any, str, Callable[[Callable], Callable]]] = [
        (builder, "create_masked_load", watcher.load),
        (builder, "create_masked_store", watcher.store),
        (builder, "create_atomic_rmw", watcher.atomic_rmw),
        (builder, "create_atomic_cas", watcher.atomic_cas),
        *((builder, name, functools.partial(_passing_on, place=place)) for name, place in PASS_ON.items()),
        (executor, "_init_args_hst", watcher.init_args),
        (executor, "__call__", watcher.call),
        (interpreter, "_implicit_cvt", watcher.convert),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in wrappers]
    for owner, name, wrap in wrappers:
        setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


class _Watcher:
    """Wraps functions of the interpreter, so that they tell the launch that runs of its accesses."""

    def __init__(self, on_launch: Callable[[Launch], None], on_access: OnAccess, on_end: Callable[[], None]) -> None:
        self.on_launch, self.on_access, self.on_end = on_launch, on_access, on_end
        self.current: list[Launch] = []
        self.names: dict[int, str] = {}
        """The parameter of each tensor of the launch, by the tensor's id."""

    def access(self, pointers: Any, mask: Any, kind: Kind) -> None:
        mask = np.asarray(mask)
        addresses = pointers.data if mask.all() else pointers.data[np.broadcast_to(mask, pointers.data.shape)]
        if addresses.size:
            size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            for extent, lanes in _locate(self.current[-1], pointers, addresses, size, kind):
                self.on_access(extent, lanes, size, kind)

    def load(self, create: Callable) -> Callable:
        def masked_load(builder: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self.access(ptrs, mask.data, "read")
            return create(builder, ptrs, mask, *rest, **named)

        return masked_load

    def store(self, create: Callable) -> Callable:
        def masked_store(builder: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self.access(ptrs, mask.data, "write")
            return create(builder, ptrs, value, mask, *rest, **named)

        return masked_store

    def atomic_rmw(self, create: Callable) -> Callable:
        def atomic(builder: Any, op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.access(ptr, mask.data, "atomic")
            return create(builder, op, ptr, value, mask, *rest)

        return atomic

    def atomic_cas(self, create: Callable) -> Callable:
        def atomic(builder: Any, ptr: Any, *rest: Any) -> Any:
            self.access(ptr, True, "atomic")
            return create(builder, ptr, *rest)

        return atomic

    def init_args(self, init: Callable) -> Callable:
        def init_args(executor: Any, args: Any, kwargs: Any) -> Any:
            args_host, kwargs_host = init(executor, args, kwargs)
            extents: dict[str, Extent] = {}
            self.names.clear()
            for name, value in inspect.getcallargs(executor.fn, *args_host, **kwargs_host).items():
                for part, tensor in _tensors(name, value):
                    extents[part] = _extent(part, tensor)
                    self.names[id(tensor)] = part
            self.current[-1] = Launch(executor.fn.__name__, extents)
            self.on_launch(self.current[-1])
            return args_host, kwargs_host

        return init_args

    def convert(self, convert: Callable) -> Callable:
        def implicit_cvt(arg: Any) -> Any:
            converted = convert(arg)
            if id(arg) in self.names:
                converted.handle.attr["argument"] = self.names[id(arg)]
            return converted

        return implicit_cvt

    def call(self, call: Callable) -> Callable:
        from triton.runtime.errors import InterpreterError

        def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
            self.current.append(Launch("", {}))
            try:
                call(executor, *args, **kwargs)
            except InterpreterError as error:
                outside = _out_of_bounds_in(error)
                if outside is None:
                    raise
                raise outside from None
            finally:
                self.current.pop()
                self.on_end()
                self.names.clear()

        return launch


def _passing_on(create: Callable, place: int) -> Callable:
    """Of an operation that makes a pointer from the operand at a place: both come from the same argument."""

    def passing(builder: Any, *operands: Any) -> Any:
        made = create(builder, *operands)
        argument = operands[place].attr.get("argument")
        if argument is not None:
            made.attr["argument"] = argument
        return made

    return passing


def _out_of_bounds_in(error: BaseException) -> OutOfBoundsError | None:
    """The access out of bounds that is the cause of an error, if it is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OutOfBoundsError):
        cause = cause.__cause__
    return cause


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
