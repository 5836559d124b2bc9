"""Batches of any size: nothing for no tokens, and chunk by chunk where there are more than the kernels take."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .checks import MAX_SLOTS


def in_chunks(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, top_k: int) -> torch.Tensor:
    """`run` over x [tokens, hidden], at most `MAX_SLOTS` slots at a time: each chunk bit by bit as if alone."""
    most = MAX_SLOTS // top_k
    if not x.shape[0]:
        return x.new_empty(x.shape)
    if x.shape[0] <= most:
        return run(x)
    return torch.cat([run(rows) for rows in x.split(most)])
