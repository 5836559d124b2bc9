"""Block schedule: which rows of the expert-sorted slots each row block of the grouped GEMMs works on.

experts int32 [tokens, top_k] -> slots in expert order, and a list of row blocks of BLOCK_M rows, none of which crosses
from one expert to the next. A slot is a token-expert pair, number token * top_k + position. Built on the host, as the
paper does, with a synchronisation; or on the GPU with none, in two launches and a list as long as any routing may need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from .tiles import BLOCK_M


@dataclass(frozen=True)
class Schedule:
    """Slots in expert order, and the row blocks over them.

    order: int32 or int64 [N], the slot at each row; slots of one expert keep their order.
    offsets: int32 [num_experts + 1], the rows of expert e are offsets[e] to offsets[e + 1].
    block_expert, block_row: int32 [num_blocks], expert and first row of each row block, experts ascending; blocks that
    are not used stand last and have expert -1.
    """

    order: torch.Tensor
    offsets: torch.Tensor
    block_expert: torch.Tensor
    block_row: torch.Tensor

    @property
    def num_experts(self) -> int:
        return self.offsets.shape[0] - 1


def max_blocks(num_slots: int, num_experts: int, block_m: int = BLOCK_M) -> int:
    """The most row blocks that any routing of so many slots needs: min(E, N) + N // block_m."""
    return min(num_experts, num_slots) + num_slots // block_m


@triton.jit
def _sort_slots_kernel(experts, order, offsets, num_slots, NUM_EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Program e places the slots of expert e: behind all slots of lower experts, in their own order."""
    expert = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)  # [BLOCK]
    lower = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, num_slots, BLOCK):
        slots = start + lanes
        lower += (tl.load(experts + slots, mask=slots < num_slots, other=NUM_EXPERTS) < expert).to(tl.int32)
    row = tl.sum(lower, axis=0)
    tl.store(offsets + expert, row)
    tl.store(offsets + NUM_EXPERTS, num_slots, mask=expert == NUM_EXPERTS - 1)
    for start in range(0, num_slots, BLOCK):
        slots = start + lanes
        mine = tl.load(experts + slots, mask=slots < num_slots, other=NUM_EXPERTS) == expert
        rank = tl.cumsum(mine.to(tl.int32), axis=0)  # counts from 1
        tl.store(order + row + rank - 1, slots, mask=mine)
        row += tl.sum(mine.to(tl.int32), axis=0)


@triton.jit
def _list_blocks_kernel(
    offsets, block_expert, block_row, num_blocks,
    NUM_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Program p writes BLOCK_B entries of the list; each finds its expert by the blocks that stand before it."""
    experts = tl.arange(0, BLOCK_E)  # [BLOCK_E]
    start = tl.load(offsets + experts, mask=experts < NUM_EXPERTS, other=0)
    end = tl.load(offsets + experts + 1, mask=experts < NUM_EXPERTS, other=0)
    count = tl.cdiv(end - start, BLOCK_M)
    last = tl.cumsum(count, axis=0)
    first = last - count
    blocks = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)  # [BLOCK_B]
    owns = (first[None, :] <= blocks[:, None]) & (blocks[:, None] < last[None, :])  # [BLOCK_B, BLOCK_E]
    expert = tl.sum(tl.where(owns, experts[None, :] + 1, 0), axis=1) - 1
    row = tl.sum(tl.where(owns, start[None, :] + (blocks[:, None] - first[None, :]) * BLOCK_M, 0), axis=1)
    tl.store(block_expert + blocks, expert, mask=blocks < num_blocks)
    tl.store(block_row + blocks, row, mask=blocks < num_blocks)


def listed_per_program(num_experts: int) -> int:
    """Entries of the block list that one program writes. It compares each with every expert, in registers."""
    return min(2**14 // triton.next_power_of_2(num_experts), 32)


def launch_schedule(experts: torch.Tensor, num_experts: int) -> Schedule:
    """The schedule of experts int32 [tokens, top_k], made without the host, in `max_blocks` blocks.

    Two launches, no synchronisation, no atomics; a CUDA graph can hold it.
    """
    num_blocks = max_blocks(experts.numel(), num_experts)
    order, offsets = launch_sort_slots(experts, num_experts)
    block_expert, block_row = torch.empty((2, num_blocks), dtype=torch.int32, device=experts.device)
    block_b = listed_per_program(num_experts)
    _list_blocks_kernel[(triton.cdiv(num_blocks, block_b),)](
        offsets, block_expert, block_row, num_blocks, NUM_EXPERTS=num_experts, BLOCK_M=BLOCK_M,
        BLOCK_E=triton.next_power_of_2(num_experts), BLOCK_B=block_b,
    )  # fmt: skip
    return Schedule(order, offsets, block_expert, block_row)


def launch_sort_slots(experts: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(order, offsets) of a `Schedule`, int32, in one launch."""
    num_slots, device = experts.numel(), experts.device
    order = torch.empty(num_slots, dtype=torch.int32, device=device)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=device)
    block = min(max(triton.next_power_of_2(num_slots), 128), 4096)
    _sort_slots_kernel[(num_experts,)](
        experts, order, offsets, num_slots, NUM_EXPERTS=num_experts, BLOCK=block, num_warps=8 if block > 1024 else 4
    )
    return order, offsets


def sort_slots(experts: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(order, offsets) of a `Schedule` by PyTorch's stable sort, with no synchronisation and no checks."""
    ascending, order = torch.sort(experts.view(-1), stable=True)
    every = torch.arange(num_experts + 1, dtype=experts.dtype, device=experts.device)
    return order, torch.searchsorted(ascending, every, out_int32=True)


def list_blocks_on_host(offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(block_expert, block_row) of a `Schedule` from its offsets: to the CPU and back. Waits for the GPU."""
    rows = offsets.cpu().numpy()
    counts = -(-np.diff(rows) // BLOCK_M)
    expert = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    first = np.cumsum(counts) - counts
    row = rows[expert] + (np.arange(len(expert), dtype=np.int32) - first[expert]) * BLOCK_M
    block_expert, block_row = torch.from_numpy(np.stack([expert, row]).astype(np.int32)).to(offsets.device)
    return block_expert, block_row
