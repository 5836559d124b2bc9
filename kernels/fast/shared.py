"""The shared expert of a layer as more slots of every token, for experts that stand behind the routed ones.

An expert n times as wide as the others is n of them, each with its part of the intermediate: their outputs add up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..integers import next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous


@triton.jit(do_not_specialize=["shared"])
def _append_shared_kernel(
    experts, weights, x, gate, all_experts, all_weights, stride_token, shared,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program a token. gate: [HIDDEN], or None for a weight of 1."""
    token = tl.program_id(0)
    slot = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    # x is older than the routing, so that it can be read before the routing is waited for.
    share = 1.0
    if gate is not None:
        column = tl.arange(0, BLOCK_H)  # [BLOCK_H]
        total = tl.zeros([BLOCK_H], dtype=tl.float32)
        for start in tl.range(0, HIDDEN, BLOCK_H):
            inside = column < HIDDEN - start
            value = tl.load(x + token.to(tl.int64) * stride_token + start + column, mask=inside, other=0.0)
            total += value.to(tl.float32) * tl.load(gate + start + column, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(tl.sum(total, axis=0))
    wait_for_previous(PDL)
    release_next(PDL)
    expert = tl.load(experts + token * TOP_K + slot, mask=slot < TOP_K, other=0)
    weight = tl.load(weights + token * TOP_K + slot, mask=slot < TOP_K, other=0.0)
    place = token * SLOTS + slot
    tl.store(all_experts + place, tl.where(slot < TOP_K, expert, shared + slot - TOP_K), mask=slot < SLOTS)
    tl.store(all_weights + place, tl.where(slot < TOP_K, weight, share), mask=slot < SLOTS)


def append_shared(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, shared: range, gate: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts int32, weights float32), each [tokens, top_k + len(shared)]: each token's slots, then the experts
    `shared`, with the weight sigmoid(x @ gate), in float32, or 1 without a gate.

    x: [tokens, hidden]; experts: int32, weights: float32, both [tokens, top_k]; gate: [hidden].
    """
    tokens, top_k = experts.shape
    slots = top_k + len(shared)
    all_experts, all_weights = (torch.empty(tokens, slots, dtype=t.dtype, device=x.device)
                                for t in (experts, weights))  # fmt: skip
    launch(
        _append_shared_kernel, (tokens,),
        experts, weights, x, gate, all_experts, all_weights, x.stride(0), shared.start, TOP_K=top_k, SLOTS=slots,
        HIDDEN=x.shape[1], BLOCK_S=next_power_of_2(slots), BLOCK_H=min(next_power_of_2(x.shape[1]), 2048),
        **launch_options(x.device),
    )  # fmt: skip
    return all_experts, all_weights
