"""The streaming limit in the order that a layer imposes: reads the active experts' weights once the routing is known.

What `stream` leaves out is what no layer can: which experts are read is known after the logits and the top-k alone,
and down's output after all of gate and up's. Here the same bytes are read in that order, by the grid of the joined path
(fast/joined.py): programs of the second part stand behind those of the first, have their first words on their way, and
wait for those of their expert.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .fast.one_grid import count, wait_for
from .integers import cdiv
from .launch import launch
from .pdl import launch_options, release_next, wait_for_previous
from .stream import StreamTile, check_words


@triton.jit
def _sum_of(base, start, end, WORDS: tl.constexpr):
    """The words from `start` on, int32 [WORDS], 0 behind `end`."""
    offsets = start + tl.arange(0, WORDS)  # [WORDS]
    return tl.load(base + offsets, mask=offsets < end, other=0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["places"])
def _stream_ordered_kernel(
    weights, active, arrivals, out, words, places,
    FIRST: tl.constexpr, CHUNKS: tl.constexpr, REST: tl.constexpr, WORDS: tl.constexpr, STEPS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Words up to FIRST of each active expert in CHUNKS programs, the others in REST, which wait for all of CHUNKS."""
    wait_for_previous(PDL)
    release_next(PDL)
    task = tl.program_id(0)
    if task < places * CHUNKS:
        place = task // CHUNKS
        base = weights + tl.load(active + place).to(tl.int64) * words
        start = task % CHUNKS * (WORDS * STEPS)
        end = words if REST == 0 else FIRST
        total = tl.zeros([WORDS], dtype=tl.int32)
        for step in tl.static_range(STEPS):
            total += _sum_of(base, start + step * WORDS, end, WORDS)
        tl.store(out + task, tl.sum(total, axis=0))
        if REST > 0:
            count(arrivals, place)
    elif REST > 0:
        place = (task - places * CHUNKS) // REST
        base = weights + tl.load(active + place).to(tl.int64) * words
        start = FIRST + (task - places * CHUNKS) % REST * (WORDS * STEPS)
        total = _sum_of(base, start, words, WORDS)
        wait_for(arrivals, place, CHUNKS)
        for step in tl.static_range(1, STEPS):
            total += _sum_of(base, start + step * WORDS, words, WORDS)
        tl.store(out + task, tl.sum(total, axis=0))


def stream_ordered(
    weights: torch.Tensor, active: torch.Tensor, tile: StreamTile, first: int = 0, arrivals: torch.Tensor | None = None
) -> torch.Tensor:
    """Sums, int32 [chunks of all active experts], of the words of the active experts, after the kernel before.

    weights, active: as for `stream`. first: words of each expert that are read before the others, which are waited for
    in arrivals, int32 of one zero or more for each active expert, and used up; 0 for all words in one phase.
    Raises ValueError as `stream` does, for a `first` outside of the words, and without arrivals where it needs them.
    """
    check_words(weights, active)
    words, piece = weights.shape[1], tile.words * tile.steps
    if not 0 <= first < words or (first and (arrivals is None or arrivals.numel() < active.numel())):
        raise ValueError(f"first must be below {words} words, with a counter for each expert, got {first}")
    chunks, rest = cdiv(first or words, piece), cdiv(words - first, piece) if first else 0
    out = torch.empty((chunks + rest) * active.numel(), dtype=torch.int32, device=weights.device)
    launch(
        _stream_ordered_kernel, (out.numel(),), weights, active, arrivals, out, words, active.numel(),
        FIRST=first, CHUNKS=chunks, REST=rest, WORDS=tile.words, STEPS=tile.steps, num_warps=tile.num_warps,
        **launch_options(weights.device),
    )  # fmt: skip
    return out
