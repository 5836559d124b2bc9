"""bfloat16 in the repaired interpreter against PyTorch, bit for bit, and loops with run-time bounds."""

import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.interpreter import repair

pytestmark = pytest.mark.skipif(
    "TRITON_INTERPRET" not in os.environ, reason="about the interpreter, which is off where there is a GPU"
)

ROWS, COLUMNS = 16, 64
SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 3.3895e38, 1e-40, 0.00390625, 1.00390625]


def random_bf16(seed: int, special: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(ROWS, COLUMNS, generator=generator) * 4
    if special:
        flat = values.view(-1)
        for position, number in enumerate(SPECIAL):
            flat[seed % 7 + position * 11] = number
    return values.to(torch.bfloat16)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Same dtype and same bits, any NaN equal to any other."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.is_floating_point():
        finite = ~torch.isnan(expected)
        assert torch.equal(torch.signbit(actual[finite]), torch.signbit(expected[finite]))


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


@triton.jit
def reduce_kernel(a_ptr, out_ptr, OP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.arange(0, ROWS)
    a = tl.load(a_ptr + rows[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])  # [ROWS, COLUMNS]
    if OP == "sum":
        out = tl.sum(a, axis=1)
    elif OP == "max":
        out = tl.max(a, axis=1)
    elif OP == "min":
        out = tl.min(a, axis=1)
    elif OP == "argmax":
        out = tl.argmax(a, axis=1)
    elif OP == "argmin":
        out = tl.argmin(a, axis=1)
    elif OP == "max_with_index":
        out, _index = tl.max(a, axis=1, return_indices=True)
    elif OP == "product":
        out = tl.reduce(a, 1, multiply)
    tl.store(out_ptr + rows, out)


@triton.jit
def multiply(a, b):
    return a * b


REDUCTIONS = {
    "sum": lambda a: a.sum(dim=1),
    "max": lambda a: a.amax(dim=1),
    "min": lambda a: a.amin(dim=1),
    "argmax": lambda a: a.argmax(dim=1).int(),
    "argmin": lambda a: a.argmin(dim=1).int(),
    "max_with_index": lambda a: a.amax(dim=1),
}


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction(op):
    a = random_bf16(5, special=False)
    if op == "sum":
        a = a.round()  # whole numbers, so that no order of summation rounds
    if op.startswith("arg"):
        a += torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS).to(torch.bfloat16) % 61
        a[:, 17], a[:, 40] = 200.0, -200.0  # no ties, which argmax breaks as it likes
    expected = REDUCTIONS[op](a)
    out = torch.empty_like(expected)
    reduce_kernel[(1,)](a, out, OP=op, ROWS=ROWS, COLUMNS=COLUMNS)
    assert_same(out, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("op", ["max", "min", "argmax", "argmin"])
def test_reduction_of_a_row_without_a_number(op, dtype):
    a = random_bf16(5, special=False).to(dtype)
    a[2] = float("nan")
    a[3] = float("nan")
    a[3, 9] = float("-inf") if op.endswith("max") else float("inf")
    out = torch.empty(ROWS, dtype=torch.int32 if op.startswith("arg") else dtype)
    reduce_kernel[(1,)](a, out, OP=op, ROWS=ROWS, COLUMNS=COLUMNS)
    if op.startswith("arg"):
        assert 0 <= out[2] < COLUMNS
    else:
        assert out[2].isnan()
    others = torch.arange(ROWS) != 2
    chosen = a[others].gather(1, out[others, None].long())[:, 0] if op.startswith("arg") else out[others]
    numbers = a.clone()
    numbers[3] = a[3, 9]
    assert_same(chosen, REDUCTIONS[op.removeprefix("arg")](numbers[others]))


def test_reduction_with_a_combine_function_of_our_own_rounds_every_step():
    a = 1 + random_bf16(6, special=False) / 64
    expected = a[:, 0]
    for column in range(1, COLUMNS):
        expected = expected * a[:, column]
    out = torch.empty(ROWS, dtype=torch.bfloat16)
    reduce_kernel[(1,)](a, out, OP="product", ROWS=ROWS, COLUMNS=COLUMNS)
    assert_same(out, expected)


@triton.jit
def scan_kernel(a_ptr, out_ptr, N: tl.constexpr, REVERSE: tl.constexpr, SORT: tl.constexpr):
    offsets = tl.arange(0, N)
    a = tl.load(a_ptr + offsets)
    out = tl.sort(a) if SORT else tl.cumsum(a, axis=0, reverse=REVERSE)
    tl.store(out_ptr + offsets, out.to(tl.bfloat16))


@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sum(reverse):
    a = (random_bf16(7, special=False)[0] / 4).round()
    out = torch.empty_like(a)
    scan_kernel[(1,)](a, out, N=COLUMNS, REVERSE=reverse, SORT=False)
    expected = a.float().flip(0).cumsum(0).flip(0) if reverse else a.float().cumsum(0)
    assert_same(out, expected.to(torch.bfloat16))


def test_sort():
    a = random_bf16(8, special=False)[0]
    out = torch.empty_like(a)
    scan_kernel[(1,)](a, out, N=COLUMNS, REVERSE=False, SORT=True)
    assert_same(out, a.sort().values)


@triton.jit
def matmul_kernel(a_ptr, b_ptr, out_ptr, K, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    accumulator = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, tl.cdiv(K, BLOCK_K)):
        k = start * BLOCK_K + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + rows[:, None] * K + k[None, :], mask=k[None, :] < K, other=0.0)  # [M, BLOCK_K]
        b = tl.load(b_ptr + columns[None, :] * K + k[:, None], mask=k[:, None] < K, other=0.0)  # [BLOCK_K, N]
        accumulator = tl.dot(a, b, acc=accumulator)
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], accumulator.to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [64, 100])
def test_dot_in_a_loop_with_a_run_time_bound(dtype, k):
    generator = torch.Generator().manual_seed(9)
    # Small whole numbers: every partial sum is exact in float32, so the result is defined to the bit.
    a = torch.randint(-8, 9, (16, k), generator=generator).to(dtype)
    b = torch.randint(-8, 9, (32, k), generator=generator).to(dtype)
    out = torch.empty(16, 32, dtype=dtype)
    matmul_kernel[(1,)](a, b, out, k, M=16, N=32, BLOCK_K=32)
    assert_same(out, (a.float() @ b.float().T).to(dtype))


@triton.jit
def loaded_bound_kernel(bound_ptr, out_ptr):
    total = 0
    for i in range(tl.load(bound_ptr), tl.load(bound_ptr + 1)):
        total += i
    tl.store(out_ptr, total)


def test_loop_bounds_loaded_from_memory():
    out = torch.zeros(1, dtype=torch.int32)
    loaded_bound_kernel[(1,)](torch.tensor([3, 7], dtype=torch.int32), out)
    assert out.item() == 3 + 4 + 5 + 6


@triton.jit
def double(a):
    return a + tl.maximum(a, a)


@triton.jit
def nested_kernel(a_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    a = tl.load(a_ptr + offsets)
    for _ in tl.static_range(5):
        a = double(a)
    tl.store(out_ptr + offsets, a + tl.sum(tl.zeros_like(a), axis=0))


def test_nested_calls_patch_what_they_see_once_a_launch(monkeypatch):
    from triton.runtime import interpreter as triton_interpreter

    patched = []
    patch = triton_interpreter._patch_lang
    monkeypatch.setattr(triton_interpreter, "_patch_lang", lambda fn: patched.append(fn.__module__) or patch(fn))
    a = random_bf16(10, special=False)
    for _ in range(2):
        patched.clear()
        out = torch.empty_like(a)
        nested_kernel[(3,)](a, out, N=a.numel())
        assert_same(out, 32 * a)
        nested = patched[1:]  # the first is the launch itself
        assert __name__ in nested
        assert len(nested) == len(set(nested))


def test_install_twice_changes_nothing():
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps

    before = InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl, ReduceOps.sum
    repair.install()
    assert (InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl, ReduceOps.sum) == before


def test_install_refuses_a_compiling_triton():
    code = "from tritonmoe_bench.experiments.interpreter import repair; repair.install()"
    environment = {name: value for name, value in checkout.program_environment().items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode != 0
    assert "RuntimeError: Triton's interpreter is off" in done.stderr


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
def test_cast_to_e4m3_rounds_to_even_and_stops_at_the_largest(source):
    a = torch.cat([torch.linspace(-460, 460, 4001), torch.logspace(-12, 9, 95, base=2)]).to(source)
    out = torch.empty(a.shape, dtype=torch.float8_e4m3fn)
    cast_kernel[(1,)](a, out, N=a.numel(), ROUNDING=None)
    assert torch.equal(out.float(), a.float().clamp(-448, 448).to(torch.float8_e4m3fn).float())


LATE = """
import os
{imports}
os.environ["TRITON_INTERPRET"] = "1"
import torch
from tritonmoe_bench.kernels import fast_moe, paper_moe
layer = [torch.zeros(shape, dtype=torch.float16) for shape in ((6, 32), (8, 32), (8, 32, 32), (8, 32, 16))]
for moe in (fast_moe, paper_moe):
    try:
        moe(*layer, 2)
    except ValueError as error:
        print(error)
"""
REPAIR = """
import re, torch
from tritonmoe_bench.kernels import fast_moe
x, *weights = [torch.ones(shape, dtype=torch.bfloat16) / 8 for shape in ((6, 32), (8, 32), (8, 32, 32), (8, 32, 16))]
try:
    fast_moe(x, *weights, 2)
except TypeError as error:
    exec(re.search("`(.*)`", str(error))[1])
y = fast_moe(x, *weights, 2)
right = fast_moe(x.half(), *(weight.half() for weight in weights), 2)
assert (y.float() - right.float()).abs().max() <= 2**-8 * right.float().abs().max(), (y, right)
print("right")
"""


def run(code, **changes):
    environment = {name: value for name, value in checkout.program_environment().items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", env=environment | changes
    )


@pytest.mark.parametrize("imports", ["import triton", "from tritonmoe_bench.kernels import fast_moe"])
def test_a_variable_that_is_set_too_late_is_one_clear_error(imports):
    """As in a notebook, whose first cell imports us: not an error of a driver that is not there."""
    done = run(LATE.format(imports=imports))
    assert done.stdout.splitlines() == 2 * [
        "x is on cpu: move it to a GPU, or for CPU tensors set TRITON_INTERPRET=1 before triton is imported, which it "
        "was when you set it: restart Python"
    ], done.stderr


def test_bfloat16_on_a_cpu_works_by_the_call_that_the_error_names():
    done = run(REPAIR, TRITON_INTERPRET="1")
    assert done.stdout == "right\n", done.stderr
