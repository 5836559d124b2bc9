"""The router's logits: x [tokens, hidden], router_weight [num_experts, hidden] -> float32 [parts, tokens, num_experts].

The parts are sums over pieces of the hidden dimension, for whoever reads them to add up: a batch of up to 512 tokens
has too few logits to fill a GPU, and its pieces keep more of it busy. All sums run in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..cublas import may_call
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from ..target import target_of

FEW_TOKENS = 4
"""Up to so many tokens each program reads one expert's whole row."""
SPLIT_TOKENS = 512
"""Up to so many tokens the hidden dimension is split; beyond, PyTorch's GEMM is as fast in 16 bits, where it may be
called."""
WIDE_TOKENS = 128
"""Above so many tokens a program has twice the experts, and reads the tokens for half as many programs."""
MANY_EXPERTS = 128
"""Above so many experts a program has twice as many again."""
NARROW_TOKENS = 16
"""Up to so many tokens pieces are `NARROW` times finer, so that all of the GPU reads, and a program has so many."""
TALL = 64
"""Tokens of a program beyond: as many as `wgmma` multiplies at once, by four warps; faster even where 32 are there."""
PIECE = 512
"""The least of the hidden dimension that a program of 17 to 128 tokens sums, and of more by up to `MANY_EXPERTS`; half
of it for fewer tokens, twice as much for more experts. On NVIDIA's GPUs a piece of 512 is on its way at once."""
MAX_PARTS = 16
NARROW = 2
STEP = 128
"""Columns of a step of a piece, twice as many where few experts leave room for them."""
LANES = 8192
"""Products that a program of a few tokens holds at once."""


@triton.jit
def _few_logits_kernel(
    x, router_weight, logits, stride_token, num_experts,
    TOKENS: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """logits[t, e] = x[t] @ router_weight[e] for a few tokens, one program an expert."""
    wait_for_previous(PDL)
    release_next(PDL)
    expert = tl.program_id(0)
    own = router_weight + expert.to(tl.int64) * K
    token = tl.arange(0, BLOCK_T)  # [BLOCK_T]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    total = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        inside = k + start < K
        weight = tl.load(own + start + k, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_K]
        rows = tl.load(
            x + token.to(tl.int64)[:, None] * stride_token + (start + k)[None, :],
            mask=(token < TOKENS)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        total += rows.to(tl.float32) * weight[None, :]
    tl.store(logits + token * num_experts + expert, tl.sum(total, axis=1), mask=token < TOKENS)


@triton.jit(do_not_specialize=["num_tokens"])
def _split_logits_kernel(
    x, router_weight, logits, num_tokens, stride_token, num_experts,
    K: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """logits[p] = x @ router_weight.T over the p-th SPAN of the hidden dimension. PRECISION: of float32 products."""
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    expert = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    part = tl.program_id(2)
    total = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.float32)
    for start in tl.range(0, SPAN, BLOCK_K):
        k = part * SPAN + start + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        row = tl.load(
            x + token.to(tl.int64)[:, None] * stride_token + k[None, :],
            mask=(token < num_tokens)[:, None] & (k < K)[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.load(
            router_weight + expert[None, :] * K + k[:, None],
            mask=(expert < num_experts)[None, :] & (k < K)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(row.to(weight.dtype), weight, total, input_precision=PRECISION)
    place = logits + (part * num_tokens + token)[:, None] * num_experts + expert[None, :]
    tl.store(place, total, mask=(token < num_tokens)[:, None] & (expert < num_experts)[None, :])


def pieces(tokens: int, hidden: int, num_experts: int, invariant: bool = False) -> tuple[int, int]:
    """(parts, the most that each sums of the hidden dimension), where it is split."""
    if _is_narrow(tokens, invariant):
        piece, step = PIECE // NARROW, STEP
    elif tokens <= WIDE_TOKENS or invariant:
        piece, step = PIECE, 2 * STEP
    else:
        piece, step = PIECE * (2 if num_experts > MANY_EXPERTS else 1), STEP
    parts = min(MAX_PARTS, cdiv(hidden, piece)) if tokens <= SPLIT_TOKENS or invariant else 1
    span = cdiv(cdiv(hidden, parts), step) * step
    return cdiv(hidden, span), span


def experts_of_program(tokens: int, num_experts: int, invariant: bool = False) -> int:
    """Whose logits a program sums, where the hidden dimension is split."""
    if _is_narrow(tokens, invariant):
        return 16
    least = 16 if tokens <= WIDE_TOKENS or invariant else 32
    return least if num_experts <= MANY_EXPERTS else 2 * least


def _is_narrow(tokens: int, invariant: bool) -> bool:
    return tokens <= NARROW_TOKENS and not invariant


def _few_warps(tokens: int, products: int) -> int:
    """Of a program that holds so many products at once: for a token or two so many that a thread has eight of them, as
    far as there may be."""
    if tokens <= 2:
        return max(1, min(16, products // 256))
    return 4 if products <= LANES // 2 else 8


def launch_logits(x: torch.Tensor, router_weight: torch.Tensor, invariant: bool = False) -> torch.Tensor:
    """float32 [parts, tokens, num_experts]; router_weight in the dtype of x, or float32, which is not rounded, whatever
    precision PyTorch's own products of float32 are set to.

    invariant: one kernel and one split for any number of tokens.
    """
    (tokens, hidden), num_experts = x.shape, router_weight.shape[0]
    in_16_bits = x.dtype == router_weight.dtype
    if in_16_bits and tokens > SPLIT_TOKENS and not invariant and may_call(x.device):
        half_sums = x.dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation
        if x.is_cuda and not half_sums:  # with which it refuses float32 results
            return torch.mm(x, router_weight.t(), out_dtype=torch.float32)[None]
        # Of 16 bits even TF32 rounds nothing.
        return (x.float() @ router_weight.float().t())[None]
    if tokens <= FEW_TOKENS and not invariant:
        logits = torch.empty(1, tokens, num_experts, dtype=torch.float32, device=x.device)
        block_t = next_power_of_2(tokens)
        block_k = min(next_power_of_2(hidden), LANES // block_t)
        launch(
            _few_logits_kernel, (num_experts,),
            x, router_weight, logits, x.stride(0), num_experts, TOKENS=tokens, K=hidden, BLOCK_T=block_t,
            BLOCK_K=block_k, num_warps=_few_warps(tokens, block_t * block_k), **launch_options(x.device),
        )  # fmt: skip
        return logits
    parts, span = pieces(tokens, hidden, num_experts, invariant)
    block_t = NARROW_TOKENS if _is_narrow(tokens, invariant) else TALL
    block_e = experts_of_program(tokens, num_experts, invariant)
    target = target_of(x.device)
    on_nvidia = target.nvidia_major > 0
    block_k = 2 * STEP if block_t == TALL and block_e == 16 and on_nvidia else STEP
    num_warps = 4
    if not in_16_bits:
        block_k, num_warps = block_k // 2, 8 if block_t == TALL else 4
        if on_nvidia and target.nvidia_major not in (9, 10):  # others have operands in registers, and too few of those
            block_e = min(block_e, 32)
    most = 3 if block_k > STEP or (block_t == TALL and not on_nvidia) else 4 if block_e > 32 else 5
    logits = torch.empty(parts, tokens, num_experts, dtype=torch.float32, device=x.device)
    launch(
        _split_logits_kernel, (cdiv(tokens, block_t), cdiv(num_experts, block_e), parts),
        x, router_weight, logits, tokens, x.stride(0), num_experts, K=hidden, SPAN=span,
        BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_K=block_k, num_warps=num_warps,
        num_stages=min(span // block_k + 1, most),
        PRECISION="tf32x3" if on_nvidia else "ieee", **launch_options(x.device),
    )  # fmt: skip
    return logits
