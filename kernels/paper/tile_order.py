"""The order of the tiles of a grouped GEMM: expert by expert, in an expert column by column, in a column row by row.

So the row blocks of an expert that need the same weight tile run side by side and share it through the L2 cache, and
the weights of an expert are read in one sweep. Experts with more than GROUP_M row blocks are taken GROUP_M at a time,
so that their activations stay in the cache too.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_tile(block_expert, block_row, offsets, num_columns, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr):
    """(expert, first row, end of the expert's rows, column) of this program's tile; expert -1 if it has none.

    block_expert, block_row: int32 [num_blocks] and offsets: int32 [num_experts + 1], as in `Schedule`;
    num_columns: tiles that the output is wide. The grid is (num_blocks * num_columns,).
    """
    program = tl.program_id(0)
    # The blocks of an expert are consecutive, so this one is of the expert that the program works for, whichever of
    # the expert's blocks the order below picks in its place.
    block = program // num_columns
    expert = tl.load(block_expert + block)
    start = tl.load(offsets + expert, mask=expert >= 0, other=0)
    end = tl.load(offsets + expert + 1, mask=expert >= 0, other=0)
    index = (tl.load(block_row + block) - start) // BLOCK_M
    group = index // GROUP_M * GROUP_M
    height = tl.minimum(tl.cdiv(end - start, BLOCK_M) - group, GROUP_M)
    position = program - (block - index + group) * num_columns
    # A program without a tile must not divide by a height of zero.
    height = tl.maximum(height, 1)
    row = start + (group + position % height) * BLOCK_M
    return expert, row, end, position // height
