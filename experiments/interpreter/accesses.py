"""Calls back at every memory access of every kernel in Triton's interpreter, and refuses those out of bounds.

A pointer is followed from the argument that it came from (through addition, splat, broadcast, ...), so that arguments
which alias or lie side by side in one buffer are told apart; where an operation loses the trail, its address decides.
"""

from __future__ import annotations

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
def watch(
    on_launch: Callable[[Launch], None],
    on_access: OnAccess,
    on_end: Callable[[], None],
) -> Iterator[None]:
    """Calls back at the start of every launch, for every access that has a lane not masked off, and at the end.

    An access out of bounds ends the launch with `OutOfBoundsError`. Raises RuntimeError if the interpreter is off.
    """
    repair.require()
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
            for extent, lanes in _locate(current[-1], pointers, addresses, size, kind):
                on_access(extent, lanes, size, kind)

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
            current.pop()
            on_end()
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
