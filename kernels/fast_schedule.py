"""Routing of `fast`, on the GPU: logits [tokens, num_experts] -> weights, slots in expert order, table of row blocks.

One launch of one program for a few slots, where launches are what costs; three launches for more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .gating import Gating
from .pdl import launch_options, release_next, wait_for_previous
from .schedule import launch_sort_slots, max_blocks
from .tiles import GROUP_M

SMALL_SLOTS = 128
"""The most slots, top_k rounded up to a power of two, that one program ranks by comparing all with all."""


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
def _choose(
    logits, bias, token, num_tokens, stride_token, scale,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(experts int32, weights float32), each [BLOCK_T, BLOCK_K], of the tokens; ties go to the lower expert."""
    lowest: tl.constexpr = float("-inf")
    column = tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]
    inside = column < NUM_EXPERTS
    mask = (token < num_tokens)[:, None] & inside
    logit = tl.load(logits + token.to(tl.int64)[:, None] * stride_token + column, mask=mask, other=0.0).to(tl.float32)
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
    choice = tl.where(inside, choice, lowest)
    if GROUPS > 1:
        grouped = tl.reshape(choice, [BLOCK_T, GROUPS, BLOCK_E // GROUPS])
        member = tl.arange(0, BLOCK_E // GROUPS)[None, None, :]
        best = tl.argmax(grouped, axis=2)  # [BLOCK_T, GROUPS]
        rest = tl.where(member == best[:, :, None], lowest, grouped)
        group_score = tl.max(grouped, axis=2) + tl.max(rest, axis=2)
        group = tl.arange(0, GROUPS)[None, :]
        allowed = tl.zeros([BLOCK_T, GROUPS], dtype=tl.int32)
        for _ in tl.static_range(TOP_GROUPS):
            chosen_group = tl.argmax(group_score, axis=1)[:, None]
            allowed = tl.where(group == chosen_group, 1, allowed)
            group_score = tl.where(group == chosen_group, lowest, group_score)
        choice = tl.reshape(tl.where(allowed[:, :, None] > 0, grouped, lowest), [BLOCK_T, BLOCK_E])
    position = tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
    experts = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.int32)
    weights = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        # Logits that are not numbers must not lead outside of the weights.
        expert = tl.minimum(tl.argmax(choice, axis=1), NUM_EXPERTS - 1)[:, None]  # [BLOCK_T, 1]
        value = tl.sum(tl.where(column == expert, score, 0.0), axis=1)[:, None]
        choice = tl.where(column == expert, lowest, choice)
        experts = tl.where(position == j, expert, experts)
        weights = tl.where(position == j, value, weights)
    if RENORMALIZE:
        weights = weights / tl.sum(weights, axis=1)[:, None]
    return experts, weights * scale


@triton.jit
def _top_k_kernel(
    logits, bias, weights, experts, num_tokens, stride_token, scale,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    chosen, value = _choose(
        logits, bias, token, num_tokens, stride_token, scale, NUM_EXPERTS, TOP_K, SIGMOID, RENORMALIZE,
        HAS_BIAS, GROUPS, TOP_GROUPS, BLOCK_T, BLOCK_E, BLOCK_K,
    )  # fmt: skip
    position = tl.arange(0, BLOCK_K)[None, :]
    mask = (token < num_tokens)[:, None] & (position < TOP_K)
    tl.store(weights + token[:, None] * TOP_K + position, value, mask=mask)
    tl.store(experts + token[:, None] * TOP_K + position, chosen, mask=mask)


@triton.jit
def _route_small_kernel(
    logits, bias, weights, order, table, num_tokens, stride_token, scale, num_blocks,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Everything in one program: each slot compares its expert with every other slot's."""
    SLOTS: tl.constexpr = BLOCK_T * BLOCK_K
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.arange(0, BLOCK_T)  # [BLOCK_T]
    chosen, value = _choose(
        logits, bias, token, num_tokens, stride_token, scale, NUM_EXPERTS, TOP_K, SIGMOID, RENORMALIZE,
        HAS_BIAS, GROUPS, TOP_GROUPS, BLOCK_T, BLOCK_E, BLOCK_K,
    )  # fmt: skip
    position = tl.arange(0, BLOCK_K)[None, :]
    real = (token < num_tokens)[:, None] & (position < TOP_K)
    tl.store(weights + token[:, None] * TOP_K + position, value, mask=real)

    mine = tl.reshape(tl.where(real, chosen, NUM_EXPERTS), [SLOTS])  # slots that are not real sort last
    index = tl.arange(0, SLOTS)  # [SLOTS]
    slot = (index // BLOCK_K) * TOP_K + index % BLOCK_K
    is_real = mine < NUM_EXPERTS
    same = mine[:, None] == mine[None, :]  # [SLOTS, SLOTS]
    start = tl.sum((mine[None, :] < mine[:, None]).to(tl.int32), axis=1)  # [SLOTS]
    count = tl.sum(same.to(tl.int32), axis=1)
    rank = tl.sum((same & (index[None, :] < index[:, None])).to(tl.int32), axis=1)
    row = start + rank
    tl.store(order + row, slot, mask=is_real)

    begins = is_real & (rank % BLOCK_M == 0)
    block = tl.sum((begins[None, :] & (row[None, :] < row[:, None])).to(tl.int32), axis=1)
    tl.store(table + block, mine, mask=begins)
    tl.store(table + num_blocks + block, row, mask=begins)
    tl.store(table + 2 * num_blocks + block, tl.minimum(count - rank, BLOCK_M), mask=begins)
    tl.store(table + 3 * num_blocks + block, block - rank // BLOCK_M, mask=begins)
    tl.store(table + 4 * num_blocks + block, tl.cdiv(count, BLOCK_M), mask=begins)
    column = tl.arange(0, BLOCK_B)  # [BLOCK_B]
    # Column by column: a sum over `begins` alone came out wrong on an H200 (Triton 3.6), and left columns unwritten.
    filled = tl.sum((begins[None, :] & (block[None, :] == column[:, None])).to(tl.int32), axis=1)  # [BLOCK_B]
    is_unused = (filled == 0) & (column < num_blocks)
    for line in tl.static_range(5):
        tl.store(table + line * num_blocks + column, tl.zeros([BLOCK_B], dtype=tl.int32), mask=is_unused)


@triton.jit
def _list_blocks_kernel(
    offsets, table, num_blocks,
    NUM_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_B: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program p writes BLOCK_B columns of the table; each finds its expert by the blocks that stand before it."""
    wait_for_previous(PDL)
    release_next(PDL)
    experts = tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]
    start = tl.load(offsets + experts, mask=experts < NUM_EXPERTS, other=0)
    end = tl.load(offsets + experts + 1, mask=experts < NUM_EXPERTS, other=0)
    blocks = tl.cdiv(end - start, BLOCK_M)
    last = tl.cumsum(blocks, axis=1)
    block = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)  # [BLOCK_B]
    owns = (last - blocks <= block[:, None]) & (block[:, None] < last)  # [BLOCK_B, BLOCK_E]
    used = tl.sum(owns.to(tl.int32), axis=1)
    expert = tl.sum(tl.where(owns, experts, 0), axis=1)
    first_row = tl.sum(tl.where(owns, start, 0), axis=1)
    end_row = tl.sum(tl.where(owns, end, 0), axis=1)
    first_block = tl.sum(tl.where(owns, last - blocks, 0), axis=1)
    number = block - first_block
    row = first_row + number * BLOCK_M
    group = number // GROUP_M * GROUP_M
    height = tl.minimum(tl.cdiv(end_row - first_row, BLOCK_M) - group, GROUP_M)
    mask = block < num_blocks
    tl.store(table + block, expert, mask=mask)
    tl.store(table + num_blocks + block, tl.where(used > 0, row, 0), mask=mask)
    tl.store(table + 2 * num_blocks + block, tl.where(used > 0, tl.minimum(end_row - row, BLOCK_M), 0), mask=mask)
    tl.store(table + 3 * num_blocks + block, tl.where(used > 0, first_block + group, 0), mask=mask)
    tl.store(table + 4 * num_blocks + block, tl.where(used > 0, height, 0), mask=mask)


def launch_routing(
    logits: torch.Tensor, top_k: int, gating: Gating, correction_bias: torch.Tensor | None, block_m: int
) -> Blocks:
    """Weights, order and table of row blocks of at most block_m rows, of logits [tokens, num_experts]."""
    (num_tokens, num_experts), device = logits.shape, logits.device
    num_slots = num_tokens * top_k
    num_blocks = max_blocks(num_slots, num_experts, block_m)
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=device)
    table = torch.empty((5, num_blocks), dtype=torch.int32, device=device)
    block_k, block_e = triton.next_power_of_2(top_k), triton.next_power_of_2(num_experts)
    choice = {
        "NUM_EXPERTS": num_experts, "TOP_K": top_k, "SIGMOID": gating.scoring == "sigmoid",
        "RENORMALIZE": gating.renormalize, "HAS_BIAS": gating.correction_bias, "GROUPS": gating.groups,
        "TOP_GROUPS": gating.top_groups, "BLOCK_E": block_e, "BLOCK_K": block_k,
    }  # fmt: skip
    bias = correction_bias if gating.correction_bias else logits
    options = launch_options(device)
    if triton.next_power_of_2(num_tokens) * block_k <= SMALL_SLOTS:
        order = torch.empty(num_slots, dtype=torch.int32, device=device)
        _route_small_kernel[(1,)](
            logits, bias, weights, order, table, num_tokens, logits.stride(0), gating.scale, num_blocks,
            BLOCK_T=triton.next_power_of_2(num_tokens), BLOCK_M=block_m, BLOCK_B=triton.next_power_of_2(num_blocks),
            num_warps=8, **choice, **options,
        )  # fmt: skip
        return Blocks(weights, order, table)
    experts = torch.empty((num_tokens, top_k), dtype=torch.int32, device=device)
    block_t = max(1, (256 if logits.is_cuda else 2**16) // block_e)
    block_t = min(block_t, triton.next_power_of_2(num_tokens))
    _top_k_kernel[(triton.cdiv(num_tokens, block_t),)](
        logits, bias, weights, experts, num_tokens, logits.stride(0), gating.scale, BLOCK_T=block_t, num_warps=1,
        **choice, **options,
    )  # fmt: skip
    order, offsets = launch_sort_slots(experts, num_experts)
    block_b = 16
    _list_blocks_kernel[(triton.cdiv(num_blocks, block_b),)](
        offsets, table, num_blocks, NUM_EXPERTS=num_experts, BLOCK_M=block_m, GROUP_M=GROUP_M,
        BLOCK_E=block_e, BLOCK_B=block_b, **options,
    )  # fmt: skip
    return Blocks(weights, order, table)
