"""First half of the routing of `fast`: logits [parts, tokens, num_experts] -> the experts of each token, and weights.

Logits come in float32, in one or more parts that add up. One launch, no host; blocks.py has the second half.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..gating import LEAST_SUM as _LEAST_SUM
from ..gating import Gating
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from .in_order import LOWEST, in_fours, moved, ordered, turned

LEAST_SUM = tl.constexpr(_LEAST_SUM)
LEAST_FOURS = tl.constexpr(32)
"""Lanes are sorted in fours where there are so many of them: one for each thread of a warp of NVIDIA's."""


@triton.jit
def _rank(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """int32 [ROWS, COLUMNS]: how many of the row's values come before each, larger first, of equal ones the first."""
    index = tl.arange(0, COLUMNS)
    mine, other = values[:, :, None], values[:, None, :]
    before = (other > mine) | ((other == mine) & (index[None, None, :] < index[None, :, None]))
    return tl.sum(before.to(tl.int32), axis=2)


@triton.jit
def _sum_parts(logits, token, expert, mask, num_tokens, PARTS: tl.constexpr, NUM_EXPERTS: tl.constexpr):
    """The logits [tokens, experts] of the tokens and experts; 0 outside of the mask."""
    place = logits + token[:, None] * NUM_EXPERTS + expert
    logit = tl.load(place, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        logit += tl.load(place + part * num_tokens * NUM_EXPERTS, mask=mask, other=0.0)
    return logit


@triton.jit
def _expert_of(lane, MEMBERS: tl.constexpr, LANES: tl.constexpr):
    """The expert of a lane: each group of MEMBERS experts begins at a multiple of LANES."""
    if MEMBERS == LANES:
        return lane
    else:
        return lane // LANES * MEMBERS + lane % LANES


@triton.jit
def _lanes(NUM_EXPERTS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr):
    """(the expert of each lane, whether there is one), [1, BLOCK_E] each: BLOCK_G groups, padded to powers of two."""
    LANES: tl.constexpr = BLOCK_E // BLOCK_G
    MEMBERS: tl.constexpr = LANES if GROUPS == 1 else NUM_EXPERTS // GROUPS
    lane = tl.arange(0, BLOCK_E)[None, :]
    expert = _expert_of(lane, MEMBERS, LANES)
    inside = expert < NUM_EXPERTS
    if MEMBERS < LANES:
        inside = inside & (lane % LANES < MEMBERS)
    return expert, inside


@triton.jit
def _choose(
    logits, router_bias, correction, column, inside, token, num_tokens, scale,
    PARTS: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(experts int32, weights float32), each [BLOCK_T, BLOCK_K], of the tokens; ties go to the lower expert.

    logits: float32 [PARTS, num_tokens, NUM_EXPERTS], to be summed over the parts. router_bias, correction: float32
    [1, BLOCK_E], or 0. column, inside: of `_lanes`.
    """
    lowest: tl.constexpr = float("-inf")
    least: tl.constexpr = -3.4e38
    LANES: tl.constexpr = BLOCK_E // BLOCK_G
    MEMBERS: tl.constexpr = LANES if GROUPS == 1 else NUM_EXPERTS // GROUPS
    # Softmax keeps the order of the logits, where distinct logits can round to equal scores. In groups an expert of
    # none that is allowed may have to fill up, with the score that it has.
    BY_LOGIT: tl.constexpr = not SIGMOID and not HAS_BIAS and GROUPS == 1
    IN_FOURS: tl.constexpr = BLOCK_E >= 4 * LEAST_FOURS
    lane = tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]
    mask = (token < num_tokens)[:, None] & inside
    logit = _sum_parts(logits, token, column, mask, num_tokens, PARTS, NUM_EXPERTS) + router_bias
    if SIGMOID:
        score = tl.sigmoid(logit)  # [BLOCK_T, BLOCK_E]
    else:
        logit = tl.where(inside, logit, lowest)
        if BY_LOGIT:
            score = logit  # and its share of the total once it is chosen
        else:
            score = tl.exp(logit - tl.max(logit, axis=1)[:, None])
            score = score / tl.sum(score, axis=1)[:, None]
    choice = logit if not SIGMOID and not HAS_BIAS else score
    if HAS_BIAS:
        choice += correction
    # Three levels: scores; `least` for experts outside of the allowed groups; `lowest` for lanes without an expert and
    # for experts already taken. So even NaN scores yield k distinct experts.
    choice = tl.where(inside, tl.where(choice >= least, choice, least), lowest)
    if GROUPS > 1:
        grouped = tl.reshape(choice, [BLOCK_T, BLOCK_G, LANES])
        best = tl.max(grouped, axis=2)  # [BLOCK_T, BLOCK_G]
        equal = grouped == best[:, :, None]
        second = tl.max(tl.where(equal, lowest, grouped), axis=2)
        group_score = best + tl.where(tl.sum(equal.to(tl.int32), axis=2) > 1, best, second)
        allowed = _rank(group_score, BLOCK_T, BLOCK_G) < TOP_GROUPS
        choice = tl.reshape(tl.where(allowed[:, :, None], grouped, least), [BLOCK_T, BLOCK_E])
        if NUM_EXPERTS < BLOCK_E:
            choice = tl.where(inside, choice, lowest)
    position = tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
    # One by one. A logit is known by its order; a score has its bits beside it.
    order = ordered(choice)
    bits = order if BY_LOGIT else score.to(tl.int32, bitcast=True)
    at = tl.broadcast_to(lane, [BLOCK_T, BLOCK_E])
    if IN_FOURS:
        first, second, third, fourth = in_fours(order, at, bits, BLOCK_T, BLOCK_E)
    else:
        first = (order, at, bits)
    taken = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.int32)
    taken_bits = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.int32)
    for j in tl.static_range(TOP_K):
        best = tl.max(first[0], axis=1)[:, None]
        best_lane = tl.min(tl.where(first[0] == best, first[1], BLOCK_E), axis=1)[:, None]
        here = first[1] == best_lane
        best_bits = turned(best) if BY_LOGIT else tl.max(tl.where(here, first[2], LOWEST), axis=1)[:, None]
        if BY_LOGIT and j == 0:
            highest = best_bits.to(tl.float32, bitcast=True)
            highest = tl.where(highest > least, highest, lowest)  # no number at all: so is the total
            total = tl.sum(tl.exp(logit - highest), axis=1)[:, None]  # beside the next choices
        taken = tl.where(position == j, best_lane, taken)
        taken_bits = tl.where(position == j, best_bits, taken_bits)
        if IN_FOURS:
            first, second = moved(here, first, second), moved(here, second, third)
            third, fourth = moved(here, third, fourth), (tl.where(here, LOWEST, fourth[0]), fourth[1], fourth[2])
        else:
            first = (tl.where(here, LOWEST, first[0]), first[1], first[2])
    experts = _expert_of(taken, MEMBERS, LANES)
    weights = taken_bits.to(tl.float32, bitcast=True)
    if BY_LOGIT:
        weights = tl.where(position < TOP_K, tl.exp(weights - highest) / total, 0.0)
    if RENORMALIZE:
        weights = weights / (tl.sum(weights, axis=1)[:, None] + LEAST_SUM)
    return experts, weights * scale


@triton.jit(do_not_specialize=["num_tokens"])
def _top_k_kernel(
    logits, router_bias, bias, weights, experts, arrivals, num_tokens, scale,
    PARTS: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    column, inside = _lanes(NUM_EXPERTS, GROUPS, BLOCK_G, BLOCK_E)
    correction = tl.load(bias + column, mask=inside, other=0.0) if HAS_BIAS else 0.0
    added = 0.0 if router_bias is None else tl.load(router_bias + column, mask=inside, other=0.0).to(tl.float32)
    # The kernel before made the logits and no bias, and started when all older ones were over.
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    chosen, value = _choose(
        logits, added, correction, column, inside, token, num_tokens, scale, PARTS, NUM_EXPERTS, TOP_K, SIGMOID,
        RENORMALIZE, HAS_BIAS, GROUPS, TOP_GROUPS, BLOCK_T, BLOCK_G, BLOCK_E, BLOCK_K,
    )  # fmt: skip
    position = tl.arange(0, BLOCK_K)[None, :]
    mask = (token < num_tokens)[:, None] & (position < TOP_K)
    tl.store(weights + token[:, None] * TOP_K + position, value, mask=mask)
    tl.store(experts + token[:, None] * TOP_K + position, chosen, mask=mask)
    if arrivals is not None:
        tl.store(arrivals + token[:, None] * TOP_K + position, tl.zeros_like(chosen), mask=mask)


def _gating_constants(parts: int, num_experts: int, top_k: int, gating: Gating) -> dict[str, int | bool]:
    """The constants of `_choose`, but for the block of tokens."""
    return {
        "PARTS": parts, "NUM_EXPERTS": num_experts, "TOP_K": top_k, "SIGMOID": gating.scoring == "sigmoid",
        "RENORMALIZE": gating.renormalize, "HAS_BIAS": gating.correction_bias, "GROUPS": gating.groups,
        "TOP_GROUPS": gating.top_groups, "BLOCK_G": next_power_of_2(gating.groups),
        "BLOCK_E": lanes(num_experts, gating.groups), "BLOCK_K": next_power_of_2(top_k),
    }  # fmt: skip


def lanes(num_experts: int, groups: int) -> int:
    """Lanes that hold the experts of a token: as many as experts, with the groups and their members padded to powers of
    two."""
    return next_power_of_2(groups) * next_power_of_2(num_experts // groups)


def tokens_of_program(padded: int, on_gpu: bool) -> int:
    """The most tokens of a program, each with so many lanes: what a warp holds, or the interpreter is fast with."""
    return max(1, (32 if on_gpu else 2**14) // padded)


def warps_of_program(padded: int) -> int:
    """So many that each has the registers for its lanes of a token."""
    return cdiv(padded, 512)


def launch_top_k(
    logits: torch.Tensor,
    top_k: int,
    gating: Gating,
    correction_bias: torch.Tensor | None,
    router_bias: torch.Tensor | None = None,
    invariant: bool = False,
    arrivals: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts int32, weights float32), each [tokens, top_k], of logits float32 [parts, tokens, num_experts].

    correction_bias: float32 [num_experts], for the gatings that have one. router_bias: float32 or 16 bits
    [num_experts], added to the logits. invariant: the program of a token is the same in any batch.
    arrivals: int32 [tokens, top_k], which it sets to 0. The biases may not be written by the kernel that is launched
    last before this one: they are read while it runs.
    """
    (parts, num_tokens, num_experts), device = logits.shape, logits.device
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=device)
    experts = torch.empty(num_tokens, top_k, dtype=torch.int32, device=device)
    padded = lanes(num_experts, gating.groups)
    block_t = tokens_of_program(padded, logits.is_cuda)
    if not invariant:
        block_t = min(next_power_of_2(num_tokens), block_t)
    launch(
        _top_k_kernel, (cdiv(num_tokens, block_t),),
        logits, router_bias, logits if correction_bias is None else correction_bias,
        weights, experts, arrivals, num_tokens, gating.scale, BLOCK_T=block_t, num_warps=warps_of_program(padded),
        **_gating_constants(parts, num_experts, top_k, gating), **launch_options(device),
    )  # fmt: skip
    return experts, weights
