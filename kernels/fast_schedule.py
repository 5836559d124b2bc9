"""Routing of `fast`, on the GPU: logits [tokens, num_experts] -> weights, slots in expert order, table of row blocks.

Logits come in float32, in one or more parts that add up. Two launches, no host, no atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .gating import Gating
from .pdl import launch_options, release_next, wait_for_previous
from .schedule import max_blocks
from .target import target_of
from .tiles import GROUP_M

MAX_RANKED = 128
"""The most experts, rounded up to a power of two, that are ranked by comparing all with all instead of one by one."""
MAX_RANKED_ON_AMD = 64
"""The same on AMD's GPUs, whose compiler runs out of registers at more, with Triton 3.7."""
MAX_PAIRS = 1024
"""The most pairs of experts, over all its tokens, that one program of more than one token compares."""

_FREE_REGISTERS = {"maxnreg": 255}
"""An option of NVIDIA's alone: the most there can be. Unasked, its assembler gives the placing kernel fewer than it
needs, at some sizes, with Triton 3.6 and 3.7, and it spills."""


@dataclass(frozen=True)
class Blocks:
    """Routing, made without the host.

    weights: float32 [tokens, top_k]. order: int32 [N], the slot at each row in expert order. table: int32
    [5, num_blocks], a column a row block: expert, first row, rows, first block of those that share its weight tiles in
    the cache, number of those. Columns that are not used stand last and have 0 rows and 0 blocks.
    """

    weights: torch.Tensor
    order: torch.Tensor
    table: torch.Tensor


@triton.jit
def _rank(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """int32 [ROWS, COLUMNS]: how many of the row's values come before each, larger first, of equal ones the first."""
    index = tl.arange(0, COLUMNS)
    mine, other = values[:, :, None], values[:, None, :]
    before = (other > mine) | ((other == mine) & (index[None, None, :] < index[None, :, None]))
    return tl.sum(before.to(tl.int32), axis=2)


@triton.jit
def _choose(
    logits, bias, token, num_tokens, scale,
    PARTS: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    RANKED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(experts int32, weights float32), each [BLOCK_T, BLOCK_K], of the tokens; ties go to the lower expert.

    logits: float32 [PARTS, num_tokens, NUM_EXPERTS], to be summed over the parts.
    """
    lowest: tl.constexpr = float("-inf")
    least: tl.constexpr = -3.4e38
    column = tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]
    inside = column < NUM_EXPERTS
    mask = (token < num_tokens)[:, None] & inside
    place = logits + token[:, None] * NUM_EXPERTS + column
    logit = tl.load(place, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        logit += tl.load(place + part * num_tokens * NUM_EXPERTS, mask=mask, other=0.0)
    if SIGMOID:
        score = tl.sigmoid(logit)  # [BLOCK_T, BLOCK_E]
    else:
        logit = tl.where(inside, logit, lowest)
        score = tl.exp(logit - tl.max(logit, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    # Softmax keeps the order of the logits, where distinct logits can round to equal scores.
    choice = score if SIGMOID or HAS_BIAS else logit
    if HAS_BIAS:
        choice += tl.load(bias + column, mask=inside, other=0.0)
    # What may not be chosen stands below every score, and above what is taken or no expert: so even scores that are not
    # numbers lead to k different experts.
    choice = tl.where(inside, tl.where(choice >= least, choice, least), lowest)
    if GROUPS > 1:
        grouped = tl.reshape(choice, [BLOCK_T, GROUPS, BLOCK_E // GROUPS])
        member = tl.arange(0, BLOCK_E // GROUPS)[None, None, :]
        best = tl.argmax(grouped, axis=2)  # [BLOCK_T, GROUPS]
        rest = tl.where(member == best[:, :, None], lowest, grouped)
        group_score = tl.max(grouped, axis=2) + tl.max(rest, axis=2)
        allowed = _rank(group_score, BLOCK_T, GROUPS) < TOP_GROUPS
        choice = tl.reshape(tl.where(allowed[:, :, None], grouped, least), [BLOCK_T, BLOCK_E])
    position = tl.arange(0, BLOCK_K)[None, None, :]  # [1, 1, BLOCK_K]
    if RANKED:
        rank = _rank(choice, BLOCK_T, BLOCK_E)
    else:
        rank = tl.full([BLOCK_T, BLOCK_E], BLOCK_E, dtype=tl.int32)
        for j in tl.static_range(TOP_K):
            free = tl.where(rank == BLOCK_E, choice, lowest)
            expert = tl.argmax(free, axis=1)[:, None]
            rank = tl.where(column == expert, j, rank)
    takes = (rank[:, :, None] == position) & (position < TOP_K)  # [BLOCK_T, BLOCK_E, BLOCK_K]
    experts = tl.sum(tl.where(takes, column[:, :, None], 0), axis=1)
    weights = tl.sum(tl.where(takes, score[:, :, None], 0.0), axis=1)
    if RENORMALIZE:
        weights = weights / tl.sum(weights, axis=1)[:, None]
    return experts, weights * scale


@triton.jit(do_not_specialize=["num_tokens"])
def _top_k_kernel(
    logits, bias, weights, experts, num_tokens, scale,
    PARTS: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    RANKED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    chosen, value = _choose(
        logits, bias, token, num_tokens, scale, PARTS, NUM_EXPERTS, TOP_K, SIGMOID, RENORMALIZE, HAS_BIAS,
        GROUPS, TOP_GROUPS, RANKED, BLOCK_T, BLOCK_E, BLOCK_K,
    )  # fmt: skip
    position = tl.arange(0, BLOCK_K)[None, :]
    mask = (token < num_tokens)[:, None] & (position < TOP_K)
    tl.store(weights + token[:, None] * TOP_K + position, value, mask=mask)
    tl.store(experts + token[:, None] * TOP_K + position, chosen, mask=mask)


@triton.jit(do_not_specialize=["num_slots", "num_blocks"])
def _place_kernel(
    experts, order, table, num_slots, num_blocks,
    NUM_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program e places the slots of expert e, behind all of lower experts and in their own order, and its blocks."""
    wait_for_previous(PDL)
    release_next(PDL)
    expert = tl.program_id(0)
    lanes = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    index = tl.arange(0, BLOCK_E)  # [BLOCK_E]
    counts = tl.zeros([BLOCK_E], dtype=tl.int32)
    for start in range(0, num_slots, BLOCK_S):
        slots = start + lanes
        # Lanes past the last slot count for expert 0, and are taken off again.
        chosen = tl.load(experts + slots, mask=slots < num_slots, other=0)
        counts += tl.histogram(chosen, BLOCK_E)
    counts -= tl.where(index == 0, tl.cdiv(num_slots, BLOCK_S) * BLOCK_S - num_slots, 0)
    blocks = tl.cdiv(counts, BLOCK_M)
    first_row = tl.sum(tl.where(index < expert, counts, 0), axis=0)
    count = tl.sum(tl.where(index == expert, counts, 0), axis=0)
    first_block = tl.sum(tl.where(index < expert, blocks, 0), axis=0)
    used = tl.sum(blocks, axis=0)

    row = first_row
    for start in range(0, num_slots, BLOCK_S):
        slots = start + lanes
        mine = tl.load(experts + slots, mask=slots < num_slots, other=NUM_EXPERTS) == expert
        rank = tl.cumsum(mine.to(tl.int32), axis=0)  # counts from 1
        tl.store(order + row + rank - 1, slots, mask=mine)
        row += tl.sum(mine.to(tl.int32), axis=0)

    # Blocks of one height run through the same weights in step; a low one runs ahead, until they are out of the L2.
    own = tl.cdiv(count, BLOCK_M)
    height = tl.cdiv(count, tl.maximum(own, 1))
    for start in range(0, own, BLOCK_B):
        number = start + tl.arange(0, BLOCK_B)  # [BLOCK_B]
        group = number // GROUP_M * GROUP_M
        column = table + first_block + number
        tl.store(column, expert, mask=number < own)
        tl.store(column + num_blocks, first_row + number * height, mask=number < own)
        tl.store(column + 2 * num_blocks, tl.minimum(count - number * height, height), mask=number < own)
        tl.store(column + 3 * num_blocks, first_block + group, mask=number < own)
        tl.store(column + 4 * num_blocks, tl.minimum(own - group, GROUP_M), mask=number < own)
    for start in range(used + expert * BLOCK_B, num_blocks, NUM_EXPERTS * BLOCK_B):
        unused = start + tl.arange(0, BLOCK_B)
        for line in tl.static_range(5):
            tl.store(table + line * num_blocks + unused, tl.zeros([BLOCK_B], dtype=tl.int32), mask=unused < num_blocks)


def _gating_constants(parts: int, num_experts: int, top_k: int, gating: Gating) -> dict[str, int | bool]:
    """The constants of `_choose`, but for the block of tokens."""
    return {
        "PARTS": parts, "NUM_EXPERTS": num_experts, "TOP_K": top_k, "SIGMOID": gating.scoring == "sigmoid",
        "RENORMALIZE": gating.renormalize, "HAS_BIAS": gating.correction_bias, "GROUPS": gating.groups,
        "TOP_GROUPS": gating.top_groups, "BLOCK_E": triton.next_power_of_2(num_experts),
        "BLOCK_K": triton.next_power_of_2(top_k),
    }  # fmt: skip


def launch_top_k(
    logits: torch.Tensor, top_k: int, gating: Gating, correction_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts int32, weights float32), each [tokens, top_k], of logits [parts, tokens, num_experts]."""
    (parts, num_tokens, num_experts), device = logits.shape, logits.device
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=device)
    experts = torch.empty((num_tokens, top_k), dtype=torch.int32, device=device)
    padded = triton.next_power_of_2(num_experts)
    pairs = padded**2
    ranked = padded <= (MAX_RANKED_ON_AMD if target_of(device).is_amd else MAX_RANKED)
    block_t = min(triton.next_power_of_2(num_tokens), max(1, (MAX_PAIRS if logits.is_cuda else 2**20) // pairs))
    _top_k_kernel[(triton.cdiv(num_tokens, block_t),)](
        logits, logits if correction_bias is None else correction_bias, weights, experts, num_tokens, gating.scale,
        RANKED=ranked, BLOCK_T=block_t, num_warps=min(max(block_t * pairs // 2048, 1), 8) if ranked else 1,
        **_gating_constants(parts, num_experts, top_k, gating), **launch_options(device),
    )  # fmt: skip
    return experts, weights


def launch_place(experts: torch.Tensor, num_experts: int, block_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(order, table) as in `Blocks`, of row blocks of at most block_m rows; experts: int32 [tokens, top_k]."""
    num_slots, device = experts.numel(), experts.device
    num_blocks = max_blocks(num_slots, num_experts, block_m)
    order = torch.empty(num_slots, dtype=torch.int32, device=device)
    table = torch.empty((5, num_blocks), dtype=torch.int32, device=device)
    block_s = min(triton.next_power_of_2(num_slots), 4096 if experts.is_cuda else 2**16)
    _place_kernel[(num_experts,)](
        experts, order, table, num_slots, num_blocks, NUM_EXPERTS=num_experts, BLOCK_M=block_m, GROUP_M=GROUP_M,
        BLOCK_E=max(triton.next_power_of_2(num_experts), 2), BLOCK_S=block_s, BLOCK_B=16,
        num_warps=4 if block_s <= 1024 else 8, **_FREE_REGISTERS if target_of(device).nvidia_major else {},
        **launch_options(device),
    )  # fmt: skip
    return order, table


def launch_routing(
    logits: torch.Tensor, top_k: int, gating: Gating, correction_bias: torch.Tensor | None, block_m: int
) -> Blocks:
    """Weights, order and table of row blocks of at most block_m rows, of logits [parts, tokens, num_experts]."""
    experts, weights = launch_top_k(logits, top_k, gating, correction_bias)
    return Blocks(weights, *launch_place(experts, logits.shape[2], block_m))
