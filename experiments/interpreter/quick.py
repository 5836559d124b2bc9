"""Triton's interpreter made quick: the same results with less Python around each operation (Triton 3.6 to 3.9).

A test of a kernel of tiny tiles spends its time on types and shapes, which are made anew for every value. Here each is
made once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

ARITHMETIC = {
    "__add__": ("create_add", "create_fadd"), "__radd__": ("create_add", "create_fadd"),
    "__mul__": ("create_mul", "create_fmul"), "__rmul__": ("create_mul", "create_fmul"),
    "__sub__": ("create_sub", "create_fsub"),
}  # fmt: skip
"""By operator, what computes it of integers and of floats; those with swapped operands are of the commutative ones."""
COMPARISONS = {
    "__lt__": ("create_icmpSLT", "create_fcmpOLT"), "__le__": ("create_icmpSLE", "create_fcmpOLE"),
    "__gt__": ("create_icmpSGT", "create_fcmpOGT"), "__ge__": ("create_icmpSGE", "create_fcmpOGE"),
    "__eq__": ("create_icmpEQ", "create_fcmpOEQ"), "__ne__": ("create_icmpNE", "create_fcmpUNE"),
}  # fmt: skip
BITWISE = {"__and__": ("create_and",), "__or__": ("create_or",)}
INTS: dict[str, Any] = {"int32": np.int32, "int64": np.int64}
FLOATS: dict[str, Any] = {"fp32": np.float32}
"""By the name of a type, NumPy's; of the types that are done in the short way."""
WHOLE = {"int1", *INTS}


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
    semantic.cast = _of_another_type(semantic.cast, tl.pointer_type)
    interpreter._patch_attr = _given_semantic(semantic)
    tl.core._unwrap_if_constexpr = _unwrapped(tl.core._unwrap_if_constexpr, tl.core.tensor)
    operators = _Operators(tl, interpreter)
    for make, table in (
        (operators.arithmetic, ARITHMETIC), (operators.comparison, COMPARISONS), (operators.bitwise, BITWISE),
    ):  # fmt: skip
        for name, computed_by in table.items():
            own = getattr(tl.core.tensor, name)
            quick: Any = make(own, *computed_by)
            quick.__wrapped__ = own
            setattr(tl.core.tensor, name, quick)


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


def _of_another_type(cast: Callable, pointer: type) -> Callable:
    """A cast to the type that a tensor has is none."""

    def to(value: Any, dtype: Any, *rest: Any, **named: Any) -> Any:
        own, wanted = value.dtype, dtype.scalar
        same = own is wanted or (type(own) is not pointer and own.name == wanted.name)
        return value if same else cast(value, dtype, *rest, **named)

    return to


def _given_semantic(semantic: Any) -> Callable:
    """Puts a builtin of the language in its place, bound to the interpreter's semantics."""

    def patch(holder: Any, name: str, member: Callable, builder: Any, scope: Any) -> None:
        def bound(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        scope.set_attr(holder, name, bound)

    return patch


def _unwrapped(unwrap: Callable, tensor: type) -> Callable:
    """A tensor and a number are no constexpr, and hold none."""
    plain = {tensor, int, float, bool}
    return lambda value: value if type(value) in plain else unwrap(value)


class _Operators:
    """Operators of tensors that go straight to NumPy where nothing has to be cast.

    So do operands of one of the types that most of a kernel's arithmetic is in, a number beside one, and an offset
    beside a pointer: NumPy broadcasts scalars and blocks of one rank as the language does. All else goes Triton's way.
    """

    def __init__(self, tl: Any, interpreter: Any) -> None:
        self.tensor, self.constexpr, self.int1 = tl.core.tensor, tl.constexpr, tl.int1
        self.pointer, self.block_type = tl.pointer_type, tl.block_type
        self.semantic, self.builder = interpreter.interpreter_semantic, interpreter.interpreter_builder
        self.handle = interpreter.TensorHandle
        self.types = {"int32": tl.int32, "int64": tl.int64, "fp32": tl.float32}
        self.constants: dict[Any, Any] = {}
        self.booleans: dict[tuple[int, ...], Any] = {}
        self.shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int] | None] = {}

    def arithmetic(self, slow: Callable, of_ints: str, of_floats: str) -> Callable:
        """An operator that casts by way of `slow`; a pointer takes an offset on its right by +."""
        to_pointers = of_ints == "create_add"
        pair, tensor, pointer, offset = self.pair, self.tensor, self.pointer, self.offset

        def operate(left: Any, right: Any) -> Any:
            found = pair(left, right)
            if found is not None:
                a, b, type_of, is_int = found
                return tensor(getattr(self.builder, of_ints if is_int else of_floats)(a, b), type_of)
            if to_pointers and type(left.dtype) is pointer:
                moved = offset(left, right)
                if moved is not None:
                    return moved
            return slow(left, right, _semantic=self.semantic)

        return operate

    def comparison(self, slow: Callable, of_ints: str, of_floats: str) -> Callable:
        """The same of a comparison."""
        pair, tensor = self.pair, self.tensor

        def compare(left: Any, right: Any) -> Any:
            found = pair(left, right)
            if found is None:
                return slow(left, right, _semantic=self.semantic)
            a, b, type_of, is_int = found
            made = getattr(self.builder, of_ints if is_int else of_floats)(a, b)
            return tensor(made, self.boolean(type_of))

        return compare

    def bitwise(self, slow: Callable, of_ints: str) -> Callable:
        """The same of a bitwise operator, of two tensors of integers or booleans."""
        tensor, shape_of = self.tensor, self.shape_of

        def operate(left: Any, right: Any) -> Any:
            if type(right) is tensor and left.dtype.name == right.dtype.name in WHOLE:
                type_of = shape_of(left.type, right.type)
                if type_of is not None:
                    return tensor(getattr(self.builder, of_ints)(left.handle, right.handle), type_of)
            return slow(left, right, _semantic=self.semantic)

        return operate

    def pair(self, left: Any, right: Any) -> tuple[Any, Any, Any, bool] | None:
        """(handles of both, the type of what comes out, whether of integers); None where something is to be cast."""
        if type(right) is self.constexpr:
            right = right.value
        name = left.dtype.name
        is_int = name in INTS
        if not is_int and name not in FLOATS:
            return None
        kind = type(right)
        if kind is self.tensor:
            if right.dtype.name != name:
                return None
            type_of = self.shape_of(left.type, right.type)
            return None if type_of is None else (left.handle, right.handle, type_of, is_int)
        if kind is not int and (kind is not float or is_int):
            return None
        constant = self.constant(right, name)
        return None if constant is None else (left.handle, constant, left.type, is_int)

    def offset(self, left: Any, right: Any) -> Any | None:
        """A pointer, or a block of them, moved by signed integers; None where something is to be cast."""
        if type(right) is self.constexpr:
            right = right.value
        if type(right) is int:
            constant = self.constant(right, "int32")
            if constant is None:
                return None
            return self.tensor(self.builder.create_addptr(left.handle, constant), left.type)
        if type(right) is not self.tensor or right.dtype.name not in INTS:
            return None
        type_of = self.shape_of(left.type, right.type)
        if type_of is None:
            return None
        if type_of is not left.type:
            type_of = type_of.with_element_ty(left.dtype)
        return self.tensor(self.builder.create_addptr(left.handle, right.handle), type_of)

    def shape_of(self, left: Any, right: Any) -> Any | None:
        """The type of what two blocks of one rank give, or a block and a scalar; None of others."""
        if not right.is_block():
            return left
        if not left.is_block():
            return right
        key = tuple(left.shape), tuple(right.shape)
        if key[0] == key[1]:
            return left
        if key not in self.shapes:
            fits = len(key[0]) == len(key[1]) and all(a == b or 1 in (a, b) for a, b in zip(*key))
            self.shapes[key] = [*map(max, *key)] if fits else None
        shape = self.shapes[key]
        return None if shape is None else self.block_type(left.scalar, shape)

    def constant(self, value: Any, name: str) -> Any | None:
        """The handle of a number, which stays as it is; None where it is out of range."""
        if type(value) is float:
            if not value:  # Triton 3.6 makes 0.0 of -0.0, later ones do not
                return None
            return self.handle(np.array([value], np.float32), self.types[name])
        key = value, name
        if key not in self.constants:
            dtype = INTS.get(name)
            if dtype is not None and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return None
            made = np.array([value], dtype or FLOATS[name])
            made.flags.writeable = False
            self.constants[key] = self.handle(made, self.types[name])
        return self.constants[key]

    def boolean(self, like: Any) -> Any:
        """The type of what a comparison gives."""
        if not like.is_block():
            return self.int1
        shape = tuple(like.shape)
        if shape not in self.booleans:
            self.booleans[shape] = like.with_element_ty(self.int1)
        return self.booleans[shape]
