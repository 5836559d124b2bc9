"""bfloat16 in the repaired interpreter against PyTorch, bit for bit: element by element, and casts."""

import pytest
import torch
import triton
import triton.language as tl
from interpreter_cases import INTERPRETED, assert_same, random_bf16

from tritonmoe_bench.experiments.interpreter import repair

pytestmark = INTERPRETED


@triton.jit
def elementwise_kernel(a_ptr, b_ptr, c_ptr, out_ptr, OP: tl.constexpr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    a = tl.load(a_ptr + offsets)
    b = tl.load(b_ptr + offsets)
    c = tl.load(c_ptr + offsets)
    if OP == "add":
        out = a + b
    elif OP == "sub":
        out = a - b
    elif OP == "mul":
        out = a * b
    elif OP == "div":
        out = a / b
    elif OP == "neg":
        out = -a
    elif OP == "abs":
        out = tl.abs(a)
    elif OP == "minimum":
        out = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif OP == "maximum":
        out = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif OP == "clamp":
        out = tl.clamp(a, tl.minimum(b, c), tl.maximum(b, c), propagate_nan=tl.PropagateNan.ALL)
    elif OP == "fma":
        out = tl.fma(a, b, c)
    elif OP == "where":
        out = tl.where(a > b, a, c)
    elif OP == "scalar":
        out = a * 1.7 + 0.3
    elif OP == "less":
        out = a < b
    elif OP == "greater_equal":
        out = a >= b
    elif OP == "equal":
        out = a == b
    elif OP == "not_equal":
        out = a != b
    elif OP == "both":
        out = (a < b) & (b < c)
    elif OP == "less_as_float":
        out = (a < b).to(tl.float32)
    elif OP == "less_as_bf16":
        out = (a < b).to(tl.bfloat16)
    elif OP == "silu":
        out = (a.to(tl.float32) * tl.sigmoid(a.to(tl.float32))).to(tl.bfloat16) * b
    tl.store(out_ptr + offsets, out)


ELEMENTWISE = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "mul": lambda a, b, c: a * b,
    "div": lambda a, b, c: a / b,
    "abs": lambda a, b, c: a.abs(),
    "minimum": lambda a, b, c: torch.minimum(a, b),
    "maximum": lambda a, b, c: torch.maximum(a, b),
    "clamp": lambda a, b, c: torch.clamp(a, torch.minimum(b, c), torch.maximum(b, c)),
    "fma": lambda a, b, c: (a.float() * b.float() + c.float()).to(torch.bfloat16),
    "where": lambda a, b, c: torch.where(a > b, a, c),
    "scalar": lambda a, b, c: a * torch.tensor(1.7, dtype=a.dtype) + torch.tensor(0.3, dtype=a.dtype),
    "less": lambda a, b, c: a < b,
    "greater_equal": lambda a, b, c: a >= b,
    "equal": lambda a, b, c: a == b,
    "not_equal": lambda a, b, c: a != b,
    "both": lambda a, b, c: (a < b) & (b < c),
    "less_as_float": lambda a, b, c: (a < b).float(),
    "less_as_bf16": lambda a, b, c: (a < b).to(torch.bfloat16),
}


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_elementwise(op):
    a, b, c = random_bf16(1), random_bf16(2), random_bf16(3)
    b[0, :8] = a[0, :8]
    if op == "clamp":
        b, c = b.nan_to_num(), c.nan_to_num()  # a bound that is no number is not defined
    expected = ELEMENTWISE[op](a, b, c)
    out = torch.empty_like(expected)
    elementwise_kernel[(1,)](a, b, c, out, OP=op, N=a.numel())
    assert_same(out, expected)


def test_negation():
    a = random_bf16(1)
    out = torch.empty_like(a)
    elementwise_kernel[(1,)](a, a, a, out, OP="neg", N=a.numel())
    torch.testing.assert_close(out, -a, rtol=0, atol=0, equal_nan=True)  # 0 - 0 and -0 differ by version of Triton


def test_silu_epilogue():
    a, b = random_bf16(1, special=False), random_bf16(2, special=False)
    out = torch.empty_like(a)
    elementwise_kernel[(1,)](a, b, a, out, OP="silu", N=a.numel())
    expected = torch.nn.functional.silu(a.float()).to(torch.bfloat16) * b
    torch.testing.assert_close(out.float(), expected.float(), rtol=2**-7, atol=0)


@triton.jit
def cast_kernel(a_ptr, out_ptr, N: tl.constexpr, ROUNDING: tl.constexpr):
    offsets = tl.arange(0, N)
    a = tl.load(a_ptr + offsets)
    tl.store(out_ptr + offsets, a.to(out_ptr.dtype.element_ty, fp_downcast_rounding=ROUNDING))


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.int32, torch.int8, torch.bool])
def test_cast_to_bf16(source):
    values = random_bf16(4).float() * 1.003
    if source.is_floating_point:
        a = values.to(source)
    else:
        a = (torch.nan_to_num(values, posinf=0, neginf=0).clamp(-100, 100)).to(source)
    out = torch.empty(a.shape, dtype=torch.bfloat16)
    cast_kernel[(1,)](a, out, N=a.numel(), ROUNDING=None)
    assert_same(out, a.to(torch.bfloat16))


@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.float64, torch.int32, torch.bool])
def test_cast_from_bf16(target):
    a = random_bf16(4, special=target.is_floating_point)
    out = torch.empty(a.shape, dtype=target)
    cast_kernel[(1,)](a, out, N=a.numel(), ROUNDING=None)
    assert_same(out, a.to(target))


def test_every_float32_tie_rounds_to_even_and_carries():
    bits = torch.arange(0, 2**16, dtype=torch.int32) << 16
    for low in (0, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        a = (bits | low).view(torch.float32)
        assert_same(torch.from_numpy(repair.narrow(a.numpy()).view("int16")).view(torch.bfloat16),
                    a.to(torch.bfloat16))  # fmt: skip


def test_cast_toward_zero():
    a = torch.tensor([1.0 + 2**-8 + 2**-9, -(1.0 + 2**-8 + 2**-9)])
    out = torch.empty(2, dtype=torch.bfloat16)
    cast_kernel[(1,)](a, out, N=2, ROUNDING="rtz")
    assert out.tolist() == [1.0, -1.0]
    cast_kernel[(1,)](a, out, N=2, ROUNDING="rtne")
    assert out.tolist() == [1.0078125, -1.0078125]


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
def test_cast_to_e4m3_rounds_to_even_and_stops_at_the_largest(source):
    a = torch.cat([torch.linspace(-460, 460, 4001), torch.logspace(-12, 9, 95, base=2)]).to(source)
    out = torch.empty(a.shape, dtype=torch.float8_e4m3fn)
    cast_kernel[(1,)](a, out, N=a.numel(), ROUNDING=None)
    assert torch.equal(out.float(), a.float().clamp(-448, 448).to(torch.float8_e4m3fn).float())
