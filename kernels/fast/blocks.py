"""Second half of the routing of `fast`: slots in expert order, and the table of row blocks. One launch, no atomics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..gating import Gating
from ..integers import next_power_of_2
from ..launch import launch
from ..paper.schedule import max_blocks
from ..paper.tiles import GROUP_M
from ..pdl import launch_options, release_next, wait_for_previous
from .local import Local, expert_of, lookup
from .routing import launch_top_k

EXPERT, ROW, ROWS, FIRST, NEIGHBOURS, LINES = (tl.constexpr(number) for number in range(6))
"""Lines of the table of row blocks, and how many they are. A block has an expert, its first row and its rows. It runs
beside its neighbours, which share its weight tiles in the cache: the first of them, and how many they are."""


@dataclass(frozen=True)
class Blocks:
    """Routing, made without the host.

    weights: float32 [tokens, top_k]. order: int32 [N], the slot at each row in expert order. table: int32
    [LINES, num_blocks], one column per row block, experts ascending, with the lines EXPERT, ROW, ROWS, FIRST,
    NEIGHBOURS. An expert's blocks stand together; columns without a block may follow those of any expert, and all their
    lines are 0, as ROWS is nowhere else. Slots without an expert here are in no block, and not in `order`, whose end is
    not written.
    arrivals: int32 [num_blocks], 0 where there is a block, for both GEMMs in one grid; else None.
    """

    weights: torch.Tensor
    order: torch.Tensor
    table: torch.Tensor
    arrivals: torch.Tensor | None = None


@triton.jit
def _chosen(
    experts, expert_map, slots, num_slots, num_global, NUM_EXPERTS: tl.constexpr, LOCAL: tl.constexpr
):  # fmt: skip
    """The expert of each slot, NUM_EXPERTS where there is none here."""
    if LOCAL is not None:
        return expert_of(experts, expert_map, num_global, slots, slots < num_slots, LOCAL)
    else:
        return tl.load(experts + slots, mask=slots < num_slots, other=NUM_EXPERTS)


@triton.jit
def _column_of(row, expert, BLOCK_M: tl.constexpr):
    """The first column of an expert whose rows begin at `row`, found without a count of each lower expert: a column for
    each row is room enough for their blocks, and so is one for each BLOCK_M rows and one for each expert. From one
    expert to the next it grows by its blocks at least, and no expert's end lies beyond `max_blocks`."""
    return tl.minimum(row, row // BLOCK_M + expert)


@triton.jit(do_not_specialize=["num_slots", "num_blocks", "num_global"])
def _place_kernel(
    experts, expert_map, order, table, arrivals, num_slots, num_blocks, num_global,
    NUM_EXPERTS: tl.constexpr, LOCAL: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_UNUSED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program e places the slots of expert e, behind all of lower experts and in their own order, and its blocks; and
    clears the columns up to the next expert's."""
    tl.static_assert(BLOCK_S < 2**15)  # two counts share an int32
    wait_for_previous(PDL)
    release_next(PDL)
    expert = tl.program_id(0)
    lanes = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    lower = tl.full([], 0, tl.int32)
    count = tl.full([], 0, tl.int32)
    for start in range(0, num_slots, BLOCK_S):
        chosen = _chosen(experts, expert_map, start + lanes, num_slots, num_global, NUM_EXPERTS, LOCAL)
        both = tl.sum((chosen < expert).to(tl.int32) + ((chosen == expert).to(tl.int32) << 16), axis=0)
        lower += both & 0xFFFF
        count += both >> 16

    row = lower
    for start in range(0, num_slots, BLOCK_S):
        slots = start + lanes
        mine = _chosen(experts, expert_map, slots, num_slots, num_global, NUM_EXPERTS, LOCAL) == expert
        rank = tl.cumsum(mine.to(tl.int32), axis=0)  # counts from 1
        tl.store(order + row + rank - 1, slots, mask=mine)
        if start + BLOCK_S < num_slots:
            row += tl.sum(mine.to(tl.int32), axis=0)

    own = tl.cdiv(count, BLOCK_M)
    first_block = _column_of(lower, expert, BLOCK_M)
    end = tl.where(expert == NUM_EXPERTS - 1, num_blocks, _column_of(lower + count, expert + 1, BLOCK_M))
    # Blocks of one height run through the same weights in step; a low one runs ahead, until they are out of the L2.
    height = tl.cdiv(count, tl.maximum(own, 1))
    for start in range(0, own, BLOCK_B):
        number = start + tl.arange(0, BLOCK_B)  # [BLOCK_B]
        group = number // GROUP_M * GROUP_M
        column = table + first_block + number
        tl.store(column + num_blocks * EXPERT, expert, mask=number < own)
        tl.store(column + num_blocks * ROW, lower + number * height, mask=number < own)
        tl.store(column + num_blocks * ROWS, tl.minimum(count - number * height, height), mask=number < own)
        tl.store(column + num_blocks * FIRST, first_block + group, mask=number < own)
        tl.store(column + num_blocks * NEIGHBOURS, tl.minimum(own - group, GROUP_M), mask=number < own)
        if arrivals is not None:
            tl.store(arrivals + first_block + number, tl.zeros_like(number), mask=number < own)
    for start in range(first_block + own, end, BLOCK_UNUSED):
        unused = start + tl.arange(0, BLOCK_UNUSED)
        for line in tl.static_range(LINES):
            tl.store(table + num_blocks * line + unused, tl.zeros([BLOCK_UNUSED], dtype=tl.int32), mask=unused < end)


def launch_place(
    experts: torch.Tensor, num_experts: int, block_m: int, local: Local | None = None, counted: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(order, table, arrivals, if they are counted) as in `Blocks`, of row blocks of at most block_m rows; experts:
    int32 [tokens, top_k], or int64 where `local` says which of them are here."""
    num_slots, device = experts.numel(), experts.device
    num_blocks = max_blocks(num_slots, num_experts, block_m)
    order = torch.empty(num_slots, dtype=torch.int32, device=device)
    table = torch.empty(LINES.value, num_blocks, dtype=torch.int32, device=device)
    arrivals = torch.empty(num_blocks, dtype=torch.int32, device=device) if counted else None
    block_s = min(next_power_of_2(num_slots), 4096 if experts.is_cuda else 2**14)
    expert_map, num_global, here = lookup(local)
    launch(
        _place_kernel, (num_experts,), experts, expert_map, order, table, arrivals, num_slots, num_blocks, num_global,
        NUM_EXPERTS=num_experts, LOCAL=here, BLOCK_M=block_m, GROUP_M=GROUP_M,
        BLOCK_S=block_s, BLOCK_B=16, BLOCK_UNUSED=128,
        num_warps=4 if block_s <= 1024 else 8,
        **launch_options(device),
    )  # fmt: skip
    return order, table, arrivals


def launch_routing(
    logits: torch.Tensor,
    top_k: int,
    gating: Gating,
    correction_bias: torch.Tensor | None,
    block_m: int,
    router_bias: torch.Tensor | None = None,
    invariant: bool = False,
    counted: bool = False,
) -> Blocks:
    """Weights, order and table of row blocks of at most block_m rows, of logits float32 [parts, tokens, num_experts]:
    both halves of the routing. counted: as in `launch_place`; the rest: as in `launch_top_k`."""
    experts, weights = launch_top_k(logits, top_k, gating, correction_bias, router_bias, invariant)
    return Blocks(weights, *launch_place(experts, logits.shape[2], block_m, counted=counted))
