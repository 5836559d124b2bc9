"""Router: logits by a dense GEMM, then scoring, top-k, renormalisation and scale in one kernel.

x [tokens, hidden], router_weight [num_experts, hidden] -> weights float32 [tokens, top_k], experts int32
[tokens, top_k], the best first. Softmax or sigmoid scores; ties go to the lower expert index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..cublas import may_call
from ..gating import LEAST_SUM as _LEAST_SUM
from ..gating import Gating

LEAST_SUM = tl.constexpr(_LEAST_SUM)
_LOWEST = tl.constexpr(-(2**63))


@triton.jit
def _score_topk_kernel(
    logits, weights, experts, num_tokens, stride_token, scale,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    columns = tl.arange(0, BLOCK_E)  # [BLOCK_E]
    inside = columns[None, :] < NUM_EXPERTS
    mask = (tokens[:, None] < num_tokens) & inside
    pointers = logits + tokens[:, None].to(tl.int64) * stride_token + columns[None, :]
    logit = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_E]
    # Softmax keeps the order of the logits, where distinct logits can round to equal scores.
    choice = tl.sigmoid(logit) if SIGMOID else logit
    logit = tl.where(inside, logit, float("-inf"))
    highest = tl.max(logit, axis=1)  # [BLOCK_T]
    total = tl.sum(tl.exp(logit - highest[:, None]), axis=1)

    # One whole number orders choices and, among equal ones, prefers the lower column: the float's bits, made to
    # compare as an integer, over the column counted from the right. Both are read back from the number itself.
    choice = tl.where(choice == 0.0, 0.0, choice)
    bits = choice.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ordered = tl.where(choice == choice, ordered, 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) | (BLOCK_E - 1 - columns)[None, :].to(tl.int64)
    key = tl.where(inside, key, _LOWEST)  # [BLOCK_T, BLOCK_E]

    position = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    chosen = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.int32)
    score = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        best = tl.max(key, axis=1)  # [BLOCK_T]
        key = tl.where(key == best[:, None], _LOWEST, key)
        ordered_best = (best >> 32).to(tl.int32)
        value = (ordered_best ^ ((ordered_best >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        if not SIGMOID:
            value = tl.exp(value - highest) / total
        expert = BLOCK_E - 1 - (best & 0xFFFFFFFF).to(tl.int32)
        chosen = tl.where(position[None, :] == k, expert[:, None], chosen)
        score = tl.where(position[None, :] == k, value[:, None], score)
    if RENORMALIZE:
        score = score / (tl.sum(score, axis=1)[:, None] + LEAST_SUM)
    offsets = tokens[:, None] * TOP_K + position[None, :]
    mask = (tokens[:, None] < num_tokens) & (position[None, :] < TOP_K)
    tl.store(weights + offsets, score * scale, mask=mask)
    tl.store(experts + offsets, chosen, mask=mask)


def launch_score_topk(logits: torch.Tensor, top_k: int, gating: Gating) -> tuple[torch.Tensor, torch.Tensor]:
    """weights float32 [tokens, top_k] and experts int32 [tokens, top_k] of logits [tokens, num_experts].

    logits: float16, bfloat16 or float32. Scores are computed in float32.
    """
    num_tokens, num_experts = logits.shape
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=logits.device)
    experts = torch.empty((num_tokens, top_k), dtype=torch.int32, device=logits.device)
    block_e = triton.next_power_of_2(num_experts)
    # A warp ranks as many tokens at a time as fill it; the interpreter takes many more.
    elements = 256 if logits.is_cuda else 2**16
    block_t = max(1, min(elements // block_e, triton.next_power_of_2(num_tokens)))
    _score_topk_kernel[(triton.cdiv(num_tokens, block_t),)](
        logits, weights, experts, num_tokens, logits.stride(0), gating.scale,
        NUM_EXPERTS=num_experts, TOP_K=top_k, SIGMOID=gating.scoring == "sigmoid", RENORMALIZE=gating.renormalize,
        BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_K=triton.next_power_of_2(top_k), num_warps=1,
    )  # fmt: skip
    return weights, experts


def launch_router(
    x: torch.Tensor, router_weight: torch.Tensor, top_k: int, gating: Gating
) -> tuple[torch.Tensor, torch.Tensor]:
    """weights float32 [tokens, top_k] and experts int32 [tokens, top_k] of x [tokens, hidden].

    router_weight: [num_experts, hidden] in the dtype of x, as in the paper, or float32; the logits are in its dtype.
    Raises RuntimeError in the capture of a CUDA graph, if it is this thread's first call.
    """
    if not may_call(x.device):
        raise RuntimeError("cuBLAS cannot be set up in the capture of a CUDA graph: call paper_moe once before it")
    return launch_score_topk(torch.mm(x.to(router_weight.dtype), router_weight.t()), top_k, gating)


def check_gating(gating: Gating, correction_bias: torch.Tensor | None = None) -> None:
    """Raises TypeError for what is no Gating, ValueError for one with groups or a correction bias."""
    if not isinstance(gating, Gating):
        raise TypeError(f"gating must be a Gating, got {type(gating).__name__}")
    if gating.groups > 1 or gating.correction_bias or correction_bias is not None:
        raise ValueError(
            "the paper's router has no expert groups and no correction bias: allowed are softmax or sigmoid scoring, "
            "renormalised or not, with a scale"
        )
