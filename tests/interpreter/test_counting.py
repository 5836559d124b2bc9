"""Counted bytes of kernels whose traffic is known on paper, and accesses out of bounds."""

import os

import pytest
import torch
import triton
import triton.language as tl

from tritonmoe_bench.experiments.interpreter.accesses import OutOfBoundsError
from tritonmoe_bench.experiments.interpreter.counting import Traffic, count_bytes, forbid_out_of_bounds

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="counts in the interpreter")


@pytest.fixture(autouse=True, scope="module")
def bounds_checked():
    """Not here, where the checks are what is tested."""


@triton.jit
def copy_kernel(source_ptr, out_ptr, n, BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source_ptr + offsets + SHIFT, mask=offsets < n)
    tl.store(out_ptr + offsets, value, mask=offsets < n)


@triton.jit
def scale_rows_kernel(a_ptr, scale_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr + row // 2)
    for start in range(0, columns, BLOCK):
        inside = start + offsets < columns
        a = tl.load(a_ptr + row * columns + start + offsets, mask=inside)
        tl.store(out_ptr + row * columns + start + offsets, a * scale, mask=inside)


@triton.jit
def histogram_kernel(index_ptr, count_ptr, lock_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    index = tl.load(index_ptr + offsets, mask=offsets < n, other=0)
    tl.atomic_add(count_ptr + index, 1, mask=offsets < n)
    tl.atomic_cas(lock_ptr, 0, 1)


@triton.jit
def gather_kernel(source_ptr, out_ptr, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = tl.load(source_ptr + rows[:, None] * stride + columns[None, :])
    tl.store(out_ptr + rows[:, None] * COLUMNS + columns[None, :], tile)


@triton.jit
def choose_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    pointers = tl.where(offsets < BLOCK // 2, a_ptr + offsets, b_ptr + offsets)
    tl.store(out_ptr + offsets, tl.load(pointers))


@triton.jit
def descriptor_kernel(source, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tile = source.load([0, 0])
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tl.store(out_ptr + rows[:, None] * COLUMNS + columns[None, :], tile)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 2), (torch.float32, 4), (torch.int64, 8), (torch.int8, 1)]
)
def test_masked_lanes_are_not_counted(dtype, size):
    source, out = torch.zeros(100, dtype=dtype), torch.zeros(100, dtype=dtype)
    with count_bytes() as counter:
        copy_kernel[(4,)](source, out, 100, BLOCK=32, SHIFT=0)
    assert counter.total("copy_kernel", "source_ptr").read_bytes == 100 * size
    assert counter.total("copy_kernel", "source_ptr").write_bytes == 0
    assert counter.total("copy_kernel", "out_ptr").write_bytes == 100 * size
    assert counter.total("copy_kernel", "out_ptr").unique_write_bytes == 100 * size


def test_repeated_reads_are_issued_often_and_unique_once():
    a, scale, out = torch.ones(6, 40), torch.ones(3), torch.empty(6, 40)
    with count_bytes() as counter:
        scale_rows_kernel[(6,)](a, scale, out, 40, BLOCK=16)
    seen = counter.total("scale_rows_kernel", "scale_ptr")
    assert (seen.read_bytes, seen.unique_read_bytes) == (6 * 4, 3 * 4)
    seen = counter.total("scale_rows_kernel", "a_ptr")
    assert (seen.read_bytes, seen.unique_read_bytes) == (6 * 40 * 4, 6 * 40 * 4)


def test_atomics_count_as_read_and_write():
    index, count = torch.tensor([0, 1, 1, 1, 3], dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    lock = torch.zeros(1, dtype=torch.int32)
    with count_bytes() as counter:
        histogram_kernel[(1,)](index, count, lock, 5, BLOCK=8)
    assert count.tolist() == [1, 3, 0, 1]
    assert counter.total("histogram_kernel", "count_ptr") == Traffic(20, 20, 12, 12)
    assert counter.total("histogram_kernel", "lock_ptr") == Traffic(4, 4, 4, 4)


def test_every_launch_is_kept_apart_and_summed():
    source, out = torch.zeros(32), torch.zeros(32)
    with count_bytes() as counter:
        copy_kernel[(1,)](source, out, 32, BLOCK=32, SHIFT=0)
        copy_kernel[(1,)](source, out, 10, BLOCK=32, SHIFT=0)
    assert [launch.arguments["out_ptr"].write_bytes for launch in counter.launches] == [128, 40]
    assert counter.total("copy_kernel", "out_ptr").write_bytes == 168
    copy_kernel[(1,)](source, out, 32, BLOCK=32, SHIFT=0)
    assert len(counter.launches) == 2
    with pytest.raises(KeyError, match="copy_kernel"):
        counter.total("other_kernel", "out_ptr")


def test_arguments_of_one_buffer_are_told_apart():
    buffer = torch.zeros(64)
    with count_bytes() as counter:
        copy_kernel[(1,)](buffer[:32], buffer[32:], 32, BLOCK=32, SHIFT=0)
        copy_kernel[(1,)](buffer, buffer, 32, BLOCK=32, SHIFT=0)
    for launch in counter.launches:
        assert (launch.arguments["source_ptr"].read_bytes, launch.arguments["source_ptr"].write_bytes) == (128, 0)
        assert (launch.arguments["out_ptr"].read_bytes, launch.arguments["out_ptr"].write_bytes) == (0, 128)


def test_pointers_whose_trail_is_lost_are_found_by_address():
    a, b, out = torch.ones(16), torch.zeros(16), torch.empty(16)
    with count_bytes() as counter:
        choose_kernel[(1,)](a, b, out, BLOCK=16)
    assert out.tolist() == [1.0] * 8 + [0.0] * 8
    assert counter.total("choose_kernel", "a_ptr").read_bytes == 32
    assert counter.total("choose_kernel", "b_ptr").read_bytes == 32


def test_tensor_descriptors():
    from triton.tools.tensor_descriptor import TensorDescriptor

    source, out = torch.ones(5, 16), torch.empty(8, 16)
    with count_bytes() as counter:
        descriptor_kernel[(1,)](TensorDescriptor.from_tensor(source, [8, 16]), out, ROWS=8, COLUMNS=16)
    assert counter.total("descriptor_kernel", "source").read_bytes == 5 * 16 * 4


@pytest.mark.parametrize("guard", [forbid_out_of_bounds, count_bytes])
def test_read_past_the_end_is_an_error(guard):
    source, out = torch.zeros(100), torch.zeros(100)
    message = r"copy_kernel: read of source_ptr at element 100, but its 4-byte elements are 0 to 99"
    with guard(), pytest.raises(OutOfBoundsError, match=message):
        copy_kernel[(4,)](source, out, 100, BLOCK=32, SHIFT=1)
    assert issubclass(OutOfBoundsError, IndexError)


def test_write_before_the_start_and_past_the_end():
    # Both neighbours lie in the same allocation, where only the trail of the pointer can tell.
    buffer = torch.zeros(96)
    with forbid_out_of_bounds():
        copy_kernel[(1,)](buffer[32:64], buffer[64:], 32, BLOCK=32, SHIFT=0)
        with pytest.raises(OutOfBoundsError, match=r"read of source_ptr at element -1\b"):
            copy_kernel[(1,)](buffer[32:64], buffer[64:], 32, BLOCK=32, SHIFT=-1)
        with pytest.raises(OutOfBoundsError, match=r"write of out_ptr at element 31\b"):
            copy_kernel[(1,)](buffer[:32], buffer[32:63], 32, BLOCK=32, SHIFT=0)


def test_a_view_is_bounded_by_its_own_last_element():
    matrix, out = torch.zeros(8, 64), torch.zeros(4, 16)
    with forbid_out_of_bounds():
        gather_kernel[(1,)](matrix[2:6, 8:24], out, 64, ROWS=4, COLUMNS=16)
        with pytest.raises(OutOfBoundsError, match="source_ptr"):
            gather_kernel[(1,)](matrix[2:6, 8:23], out, 64, ROWS=4, COLUMNS=16)


def test_an_empty_argument_has_no_element():
    with forbid_out_of_bounds():
        copy_kernel[(1,)](torch.empty(0), torch.empty(0), 0, BLOCK=32, SHIFT=0)
        with pytest.raises(OutOfBoundsError, match="source_ptr"):
            copy_kernel[(1,)](torch.empty(0), torch.empty(1), 1, BLOCK=32, SHIFT=0)


def test_lost_trail_out_of_bounds():
    buffer = torch.zeros(64)
    with forbid_out_of_bounds(), pytest.raises(OutOfBoundsError, match="b_ptr at element 8"):
        choose_kernel[(1,)](buffer[:8], buffer[16:24], torch.empty(16), BLOCK=16)


def test_nothing_stays_patched():
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    def state():
        return InterpreterBuilder.create_masked_load, InterpreterBuilder.create_addptr, GridExecutor.__call__

    before = state()
    with count_bytes(), forbid_out_of_bounds():
        assert state() != before
    assert state() == before
