"""The short way of an operator gives what Triton's own gives: values, type and shape."""

import itertools

import numpy as np
import pytest
from interpreter_cases import INTERPRETED

from tritonmoe_bench.experiments.interpreter import quick

pytestmark = INTERPRETED
TYPES = {
    "int32": np.int32, "int64": np.int64, "fp32": np.float32, "fp16": np.float16, "uint32": np.uint32, "int8": np.int8,
    "int1": np.bool_,
}  # fmt: skip
SHAPES = [(), (4,), (4, 1), (1, 8), (4, 8)]
NUMBERS = [0, 3, -2, 2**31 - 1, 2**40, 1.5, -0.0, float("inf"), True]


@pytest.fixture
def interpreter():
    from triton.runtime import interpreter

    return interpreter


def tensor(interpreter, name, shape, seed):
    """Some of every size that the type holds, zero among them."""
    import triton.language as tl

    dtype = {"fp32": tl.float32, "fp16": tl.float16}.get(name) or getattr(tl, name)
    values = np.random.default_rng(seed).integers(-2, 3, shape or (1,)) * (1, 2**30)[seed % 2]
    with np.errstate(all="ignore"):
        handle = interpreter.TensorHandle(values.astype(TYPES[name]), dtype)
    return tl.core.tensor(handle, tl.block_type(dtype, list(shape)) if shape else dtype)


def told(compute, *operands):
    """What an operator gives, or the kind of error that it ends with."""
    with np.errstate(all="ignore"):
        try:
            made = compute(*operands)
        except Exception as error:
            return type(error)
    shape = tuple(made.type.shape) if made.type.is_block() else ()
    data = np.broadcast_to(made.handle.data, shape or (1,))
    return made.dtype.name, shape, data.dtype, data.tobytes()


def own_way(interpreter, name, *operands):
    """What the operator that stood there gives."""
    import triton.language as tl

    own = getattr(tl.core.tensor, name).__wrapped__
    return told(lambda *given: own(*given, _semantic=interpreter.interpreter_semantic), *operands)


@pytest.mark.parametrize("name", [*quick.ARITHMETIC, *quick.COMPARISONS, *quick.BITWISE])
def test_of_two_tensors(name, interpreter):
    import triton.language as tl

    kinds = list(itertools.product(TYPES, SHAPES))
    for seed, ((a, left), (b, right)) in enumerate(itertools.product(kinds, kinds)):
        x, y = tensor(interpreter, a, left, seed), tensor(interpreter, b, right, seed + 1)
        assert told(getattr(tl.core.tensor, name), x, y) == own_way(interpreter, name, x, y), (a, left, b, right)


@pytest.mark.parametrize("name", [*quick.ARITHMETIC, *quick.COMPARISONS])
def test_of_a_tensor_and_a_number(name, interpreter):
    import triton.language as tl

    for seed, (kind, shape, number) in enumerate(itertools.product(TYPES, SHAPES, NUMBERS)):
        x = tensor(interpreter, kind, shape, seed)
        own = own_way(interpreter, name, x, number)
        for given in (number, tl.constexpr(number)):
            assert told(getattr(tl.core.tensor, name), x, given) == own, (kind, shape, number)


@pytest.mark.parametrize("offset", ["int32", "int64", "uint32", 3, -1, 2**40, True])
def test_of_a_pointer_and_an_offset(offset, interpreter):
    import triton.language as tl

    pointer = tl.pointer_type(tl.float16)
    for seed, (left, right) in enumerate(itertools.product(SHAPES, SHAPES)):
        held = np.arange(1, 1 + np.prod(left, dtype=int)).reshape(left or (1,)).astype(np.uint64) << np.uint64(20)
        of = tl.block_type(pointer, list(left)) if left else pointer
        x = tl.core.tensor(interpreter.TensorHandle(held, pointer), of)
        by = tensor(interpreter, offset, right, seed) if isinstance(offset, str) else offset
        assert told(tl.core.tensor.__add__, x, by) == own_way(interpreter, "__add__", x, by), (left, right)
