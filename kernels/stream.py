"""The streaming limit: reads the active experts' weights, once, and does nothing else.

weights int32 [num_experts, words], active int32 [num_active] -> partial sums int32 [programs], so that no compiler may
leave a load out. What a forward that must read these weights could reach at best on this GPU, launch included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class StreamTile:
    """words: int32 words that one program reads at a time; steps: how many times; num_warps: its warps."""

    words: int
    steps: int
    num_warps: int


STREAM_TILES = (
    StreamTile(4096, 1, 4),
    StreamTile(8192, 1, 8),
    StreamTile(16384, 1, 16),
    StreamTile(4096, 4, 4),
    StreamTile(4096, 16, 4),
    StreamTile(8192, 8, 8),
)
"""Candidates; which is fastest depends on the size, so the harness times all of them and keeps the best."""


@triton.jit
def _stream_kernel(weights, active, out, words, WORDS: tl.constexpr, STEPS: tl.constexpr):
    chunk = tl.program_id(0)
    expert = tl.load(active + tl.program_id(1)).to(tl.int64)
    base = weights + expert * words
    start = chunk.to(tl.int64) * (WORDS * STEPS)
    total = tl.zeros([WORDS], dtype=tl.int32)
    for step in tl.static_range(STEPS):
        offsets = start + step * WORDS + tl.arange(0, WORDS)  # [WORDS]
        total += tl.load(base + offsets, mask=offsets < words, other=0, eviction_policy="evict_first")
    tl.store(out + tl.program_id(1) * tl.num_programs(0) + chunk, tl.sum(total, axis=0))


def stream(weights: torch.Tensor, active: torch.Tensor, tile: StreamTile = STREAM_TILES[0]) -> torch.Tensor:
    """Sums, int32 [num_active * chunks], of the words of the active experts.

    weights: int32 [num_experts, words]; active: int32 [num_active], rows of `weights` to read; both contiguous.
    Raises ValueError for another dtype, rank, layout or device.
    """
    if weights.dtype != torch.int32 or weights.dim() != 2 or not weights.is_contiguous():
        raise ValueError(f"weights must be a contiguous int32 matrix, got {weights.dtype} {tuple(weights.shape)}")
    if active.dtype != torch.int32 or active.dim() != 1 or active.numel() == 0:
        raise ValueError(f"active must be a non-empty int32 vector, got {active.dtype} {tuple(active.shape)}")
    if not active.is_contiguous() or active.device != weights.device:
        raise ValueError(f"active must be contiguous on {weights.device}, got {active.stride()} on {active.device}")
    chunks = triton.cdiv(weights.shape[1], tile.words * tile.steps)
    out = torch.empty(chunks * active.numel(), dtype=torch.int32, device=weights.device)
    grid = (chunks, active.numel())
    _stream_kernel[grid](
        weights, active, out, weights.shape[1], WORDS=tile.words, STEPS=tile.steps, num_warps=tile.num_warps
    )
    return out
