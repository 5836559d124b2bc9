"""Batches of any size: nothing for no tokens, and chunk by chunk where there are more than the kernels take."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .checks import MAX_SLOTS


def chunks(tokens: int, top_k: int) -> list[slice]:
    """The rows of each chunk, of at most `MAX_SLOTS` slots; none for no tokens."""
    most = MAX_SLOTS // top_k
    return [slice(start, min(start + most, tokens)) for start in range(0, tokens, most)]


def in_chunks(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, top_k: int) -> torch.Tensor:
    """`run` over x [tokens, hidden], chunk by chunk: each bit by bit as if alone."""
    parts = chunks(x.shape[0], top_k)
    if not parts:
        return x.new_empty(x.shape)
    return run(x) if len(parts) == 1 else torch.cat([run(x[part]) for part in parts])
