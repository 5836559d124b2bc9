"""Triton's interpreter made quick: the same results with less Python around each operation (Triton 3.6 to 3.9).

A test of a kernel of tiny tiles spends its time on types and shapes, which are made anew for every value. Here each is
made once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any


def install() -> None:
    """For this process, which must interpret its kernels; once, by `repair.install`."""
    import triton.language as tl
    from triton.runtime import interpreter

    # Integer arithmetic is done again in int64, for an assertion that is dropped unless `debug` is on, and it is off.
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = _once_a_type(interpreter._get_np_dtype, tl.pointer_type)
    tl.core.block_type.__init__ = _block_types(tl.core.block_type.__init__, tl.constexpr)
    tl.core.tensor.__init__ = _tensors(tl.core.tensor.__init__)
    semantic = interpreter.interpreter_semantic
    semantic.broadcast_impl_value = _of_one_shape(semantic.broadcast_impl_value)


def _once_a_type(np_dtype: Callable, pointer: type) -> Callable:
    """The NumPy type of a type; the original makes a table of all of them at each call."""
    known: dict[str, Any] = {}

    def look_up(of: Any) -> Any:
        if isinstance(of, pointer):
            return np_dtype(of)
        if of.name not in known:
            known[of.name] = np_dtype(of)
        return known[of.name]

    return look_up


def _block_types(make: Callable, constexpr: Any) -> Callable:
    """Shape, number of elements and name of a block are made once for each element type and shape."""
    known: dict[Any, dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, constexpr) else size for size in shape])
        key = (type(element_ty), element_ty.name, getattr(element_ty, "const", None), sizes)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = vars(self).copy()
        vars(self).update(known[key])

    return init


def _tensors(make: Callable) -> Callable:
    """What a tensor has of its shape is made once for each shape."""
    known: dict[Any, dict[str, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in known:
            make(self, handle, type)
            known[shape] = {name: getattr(self, name) for name in ("shape", "numel")}
        vars(self).update(known[shape], handle=handle, type=type, dtype=type.scalar)

    return init


def _of_one_shape(broadcast: Callable) -> Callable:
    """Operands of one shape are left as they are, with no further look."""

    def pair(lhs: Any, rhs: Any) -> tuple[Any, Any]:
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block():
            same = [*left.shape] == [*right.shape]
        else:
            same = not left.is_block() and not right.is_block()
        return (lhs, rhs) if same else broadcast(lhs, rhs)

    return pair
