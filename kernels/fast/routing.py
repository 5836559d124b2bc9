"""Routing of `fast`, on the GPU: logits [tokens, num_experts] -> weights, slots in expert order, table of row blocks.

Logits come in float32, in one or more parts that add up. Two launches, no host, no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..gating import LEAST_SUM as _LEAST_SUM
from ..gating import Gating
from ..pdl import launch_options, release_next, wait_for_previous
from ..target import target_of

LEAST_SUM = tl.constexpr(_LEAST_SUM)
MAX_RANKED = 128
"""The most experts, rounded up to a power of two, that are ranked by comparing all with all instead of one by one."""
MAX_RANKED_ON_AMD = 64
"""The same on AMD's GPUs, whose compiler runs out of registers at more, with Triton 3.7."""
MAX_PAIRS = 1024
"""The most pairs of experts, over all its tokens, that one program of more than one token compares."""


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
        weights = weights / (tl.sum(weights, axis=1)[:, None] + LEAST_SUM)
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
