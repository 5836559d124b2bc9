"""Triton's interpreter made right and fast: bfloat16, loops with run-time bounds under NumPy 2.4, nested functions.

The interpreter (TRITON_INTERPRET=1, Triton 3.6 to 3.9) holds bfloat16 as uint16 and computes on the raw bits, silently.
`install` makes every operation compute in float32 and round once, to nearest even, as a GPU does; loads, stores,
selects and reshapes move bits and were right all along. Casts to e4m3, which the interpreter cuts, round to nearest
even too. Atomics on bfloat16 are not in the interpreter at all. A call of one @triton.jit function by another costs
next to nothing, where it used to patch the whole language again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import quick

QUIET_NAN = 0x0040


def widen(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 held as uint16; same shape, exact."""
    return np.asarray(np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray, toward_zero: bool = False) -> np.ndarray:
    """bfloat16 bits, uint16, of float32 values, rounded to nearest even or cut; NaN stays NaN. Same shape."""
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values))
    bits = values.view(np.uint32)
    high = bits >> 16
    rounded = high if toward_zero else (bits + (np.uint32(0x7FFF) + (high & 1))) >> 16
    return np.asarray(np.where(np.isnan(values), high | QUIET_NAN, rounded)).astype(np.uint16)


def narrow_e4m3(values: np.ndarray) -> np.ndarray:
    """e4m3 bits, uint8, of float32 values, rounded to nearest even; 448 for all beyond it, as on a GPU."""
    import torch

    held = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).clamp(-448.0, 448.0)
    return held.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(np.shape(values))


def install() -> None:
    """Repairs the interpreter of this process; a second call changes nothing.

    Raises RuntimeError where the interpreter is not on, because a compiled kernel must never meet these patches.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    require()
    builder = interpreter.InterpreterBuilder
    if hasattr(builder, "computes_bf16"):
        return
    _repair_arithmetic(builder, interpreter, tl)
    _repair_casts(builder, interpreter, tl)
    _repair_reductions(interpreter, tl)
    _repair_loop_bounds(interpreter)
    _patch_once_per_launch(interpreter)
    _silence_numpy(interpreter.GridExecutor)
    quick.install()
    builder.computes_bf16 = True


def require() -> None:
    """Raises RuntimeError unless this process interprets its kernels."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.standard._sum_combine, InterpretedFunction):
        raise RuntimeError("Triton's interpreter is off: set TRITON_INTERPRET=1 before triton is first imported")


def _repair_arithmetic(builder: Any, interpreter: Any, tl: Any) -> None:
    handle = interpreter.TensorHandle
    binary_op, unary_op, ternary_op = builder.binary_op, builder.unary_op, builder.ternary_op
    create_fma, create_dot = builder.create_fma, builder.create_dot

    def is_bf16(*operands: Any) -> bool:
        return any(operand.dtype.scalar.name == "bf16" for operand in operands)

    def value(operand: Any) -> np.ndarray:
        return widen(operand.data) if is_bf16(operand) else operand.data

    def result(output: np.ndarray) -> Any:
        # A comparison keeps its booleans; under the label bfloat16 a later cast would read them as bits.
        if output.dtype == np.bool_:
            return handle(output, tl.int1)
        return handle(narrow(output), tl.bfloat16)

    def binary(self: Any, lhs: Any, rhs: Any, op: Callable) -> Any:
        if not is_bf16(lhs, rhs):
            return binary_op(self, lhs, rhs, op)
        return result(op(value(lhs), value(rhs)))

    def unary(self: Any, arg: Any, op: Callable) -> Any:
        return result(op(value(arg))) if is_bf16(arg) else unary_op(self, arg, op)

    def ternary(self: Any, first: Any, second: Any, third: Any, op: Callable) -> Any:
        if op is np.where or not is_bf16(third):
            return ternary_op(self, first, second, third, op)
        return result(op(value(first), value(second), value(third)))

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        # The product of two bfloat16 is exact in float32, so the sum is the only rounding before the last.
        if not is_bf16(z):
            return create_fma(self, x, y, z)
        return result(value(x) * value(y) + value(z))

    def dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        if not is_bf16(a, b):
            return create_dot(self, a, b, d, *precision)
        return handle(np.matmul(value(a), value(b)).astype(d.data.dtype) + d.data, d.dtype.scalar)

    builder.binary_op, builder.unary_op, builder.ternary_op = binary, unary, ternary
    builder.create_fma, builder.create_dot = fma, dot


def _repair_casts(builder: Any, interpreter: Any, tl: Any) -> None:
    handle, rounding = interpreter.TensorHandle, interpreter._ir.ROUNDING_MODE
    cast_impl, create_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.bfloat16:
            src = handle(widen(src.data), tl.float32)
        if dst_type.scalar == tl.bfloat16:
            return handle(narrow(src.data.astype(np.float32)), tl.bfloat16)
        return cast_impl(self, src, dst_type)

    def fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if dst_type.scalar == tl.float8e4nv and src.dtype.scalar in (tl.float32, tl.float16, tl.bfloat16):
            values = widen(src.data) if src.dtype.scalar == tl.bfloat16 else src.data
            return handle(narrow_e4m3(values), tl.float8e4nv)
        if src.dtype.scalar == tl.bfloat16:
            src = handle(widen(src.data), tl.float32)
            if dst_type.scalar in (tl.float32, tl.float16, tl.float64) and rounding_mode != rounding.RTZ:
                return cast_impl(self, src, dst_type)
        if dst_type.scalar != tl.bfloat16:
            return create_fp_to_fp(self, src, dst_type, rounding_mode)
        if src.data.dtype.kind != "f":
            src = create_fp_to_fp(self, src, tl.float32, None)
        return handle(narrow(src.data.astype(np.float32), rounding_mode == rounding.RTZ), tl.bfloat16)

    def get_bf16(self: Any, number: float) -> Any:
        return handle(narrow(np.array([number], dtype=np.float32)), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp, builder.get_bf16 = cast, fp_to_fp, get_bf16


def _repair_reductions(interpreter: Any, tl: Any) -> None:
    """NumPy's reductions, which the interpreter uses for the common combine functions."""
    handle = interpreter.TensorHandle

    def relabel(tensor: Any, data: np.ndarray, dtype: Any) -> Any:
        shaped = tensor.type.is_block()
        return tl.core.tensor(handle(data, dtype), tl.block_type(dtype, tensor.type.shape) if shaped else dtype)

    def back(tensor: Any) -> Any:
        return relabel(tensor, narrow(tensor.handle.data), tl.bfloat16) if tensor.dtype == tl.float32 else tensor

    def in_float32(method: Callable) -> Callable:
        def reduce(self: Any, source: Any, *operations: Any, **named: Any) -> Any:
            source = source[0] if isinstance(source, tuple) else source
            if source.dtype != tl.bfloat16:
                return method(self, source, *operations, **named)
            reduced = method(self, relabel(source, widen(source.handle.data), tl.float32), *operations, **named)
            if isinstance(reduced, (tuple, list)):
                return type(reduced)(back(part) for part in reduced)
            return back(reduced)

        return reduce

    min_max = interpreter.ReduceOps.min_max
    # NumPy has no index where all of a slice is NaN, or takes the NaN; a GPU mostly takes the number beside it.
    total: dict[Any, Callable] = {
        np.nanmax: np.fmax.reduce,
        np.nanmin: np.fmin.reduce,
        **dict.fromkeys((np.argmax, np.nanargmax), _index_of(np.fmax)),
        **dict.fromkeys((np.argmin, np.nanargmin), _index_of(np.fmin)),
    }

    def total_min_max(self: Any, source: Any, val_reduce_op: Callable, idx_reduce_op: Callable | None = None) -> Any:
        value, index = total.get(val_reduce_op, val_reduce_op), total.get(idx_reduce_op, idx_reduce_op)
        return min_max(self, source, val_reduce_op=value, idx_reduce_op=index)

    interpreter.ReduceOps.min_max = total_min_max
    for owner, names in ((interpreter.ReduceOps, ("sum", "min_max")), (interpreter.ScanOps, ("cumsum", "cumprod"))):
        for name in names:
            setattr(owner, name, in_float32(getattr(owner, name)))


def _index_of(extreme: np.ufunc) -> Callable:
    """(data, axis, keepdims) -> leftmost index of the extreme number, even an infinity beside NaN; 0 if all is NaN."""

    def find(data: np.ndarray, axis: int | None, keepdims: bool) -> np.ndarray:
        return np.argmax(data == extreme.reduce(data, axis=axis, keepdims=True), axis=axis, keepdims=keepdims)

    return find


def _repair_loop_bounds(interpreter: Any) -> None:
    """`range` asks a bound for its index, and NumPy >= 2.4 makes no int of an array of one element (Triton 3.6)."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def _patch_once_per_launch(interpreter: Any) -> None:
    """Nested calls patch the modules that a function sees once a launch, not once a call: most of a launch's time."""
    executor, function = interpreter.GridExecutor, interpreter.InterpretedFunction
    launch = executor.__call__
    patched: set[int] = set()

    def call_grid(self: Any, *args: Any, **kwargs: Any) -> None:
        # The end of the launch before took back what it had patched.
        patched.clear()
        launch(self, *args, **kwargs)

    def call_nested(self: Any, *args: Any, **kwargs: Any) -> Any:
        namespace = id(self.fn.__globals__)
        if namespace not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(namespace)
        return self.rewrite()(*args, **kwargs)

    executor.__call__, function.__call__ = call_grid, call_nested


def _silence_numpy(executor: Any) -> None:
    """Infinities and NaN are values to a GPU, and masked lanes compute with whatever they hold: nothing to warn of."""
    launch = executor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        with np.errstate(all="ignore"):
            launch(self, *args, **kwargs)

    executor.__call__ = call
