"""bfloat16 in the repaired interpreter against PyTorch, bit for bit: reductions, scans and products; and loops with
run-time bounds."""

import pytest
import torch
import triton
import triton.language as tl
from interpreter_cases import COLUMNS, INTERPRETED, ROWS, assert_same, random_bf16

pytestmark = INTERPRETED


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
