"""Values of a row in order, for the choice of the largest: float32 as integers, and neighbours sorted in fours.

On NVIDIA's GPUs a warp finds the largest of 32 integers in one instruction, of float32 in ten, and a thread holds four
neighbours of 128 values or more. The first of four stands for all once they are in order, so that a round looks at a
quarter of the row.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**31))


@triton.jit
def ordered(values):
    """int32 in the order of float32 values that are numbers, with one zero."""
    return turned((values + 0.0).to(tl.int32, bitcast=True))


@triton.jit
def turned(bits):
    """The place of a float32 among all of them, from its bits, and its bits from that place: int32 each."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def moved(where, one, other):
    """(order, lane, bits) of the other where `where` is true, else of the one."""
    return (tl.where(where, other[0], one[0]), tl.where(where, other[1], one[1]), tl.where(where, other[2], one[2]))


@triton.jit
def _sorted_pair(one, other):
    """Both (order, lane, bits), the one that comes first in front: the larger, of equal ones that of the lower lane."""
    behind = (one[0] < other[0]) | ((one[0] == other[0]) & (one[1] > other[1]))
    return moved(behind, one, other), moved(behind, other, one)


@triton.jit
def _quarters(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Every fourth of [ROWS, COLUMNS], from the first, second, third and fourth on."""
    even, odd = tl.split(tl.reshape(values, [ROWS, COLUMNS // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def in_fours(order, lane, bits, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(order, lane, bits) of the first, second, third and fourth of each four neighbours, [ROWS, COLUMNS / 4]."""
    o0, o1, o2, o3 = _quarters(order, ROWS, COLUMNS)
    l0, l1, l2, l3 = _quarters(lane, ROWS, COLUMNS)
    b0, b1, b2, b3 = _quarters(bits, ROWS, COLUMNS)
    first, second = _sorted_pair((o0, l0, b0), (o1, l1, b1))
    third, fourth = _sorted_pair((o2, l2, b2), (o3, l3, b3))
    first, third = _sorted_pair(first, third)
    second, fourth = _sorted_pair(second, fourth)
    second, third = _sorted_pair(second, third)
    return first, second, third, fourth
