"""Batches of any size: nothing for no tokens, and chunk by chunk where there are more than the kernels take."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .checks import MAX_SLOTS

OFFSETS = 2**31
"""Elements that offsets of 32 bits reach."""


def chunks(tokens: int, top_k: int, elements: int = 1) -> list[slice]:
    """The rows of each chunk, of at most `MAX_SLOTS` slots; none for no tokens.

    elements: of a token in a tensor of the whole chunk, whose offsets in kernels have 32 bits.
    """
    most = min(MAX_SLOTS // top_k, OFFSETS // elements)
    return [slice(start, min(start + most, tokens)) for start in range(0, tokens, most)]


def in_chunks(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, top_k: int) -> torch.Tensor:
    """`run` over x [tokens, hidden], chunk by chunk: each bit by bit as if alone."""
    parts = chunks(x.shape[0], top_k)
    if not parts:
        return x.new_empty(x.shape)
    return run(x) if len(parts) == 1 else torch.cat([run(x[part]) for part in parts])
