"""A MoE layer around somebody's grouped GEMMs: router, sort of the slots by expert, permute, and weighted combine.

Plain PyTorch, without a wait for the host; the expert GEMMs between `rows` and `combine` are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tritonmoe_bench.experiments.workload.reference import route

if TYPE_CHECKING:
    from tritonmoe_bench.experiments.implementation.contract import Case, Weights


@dataclass(frozen=True)
class Sorted:
    """The slots (token-expert pairs, N = tokens * top_k) of a forward, by expert.

    scores: float32 [tokens, top_k]; order: int64 [N], the slot of each sorted row; ends: int64 [num_experts], where
    each expert's rows end.
    """

    scores: torch.Tensor
    order: torch.Tensor
    ends: torch.Tensor


class ByExpert:
    """The parts of one case's forward that are not expert GEMMs."""

    def __init__(self, case: Case, weights: Weights) -> None:
        self._router, self._bias = weights.router(), weights.correction_bias()
        self._top_k, self._gating = case.top_k, case.gate
        self._experts = torch.arange(case.num_experts, device=self._router.device)

    def sort(self, x: torch.Tensor) -> Sorted:
        """Routes x [tokens, hidden] and sorts its slots; rows of one expert keep the order of their tokens."""
        scores, experts = route(x @ self._router.T, self._top_k, self._gating, self._bias)
        by_expert, order = experts.flatten().sort(stable=True)
        return Sorted(scores, order, torch.searchsorted(by_expert, self._experts, right=True))

    def rows(self, x: torch.Tensor, slots: Sorted) -> torch.Tensor:
        """[N, hidden]: the row of x of each sorted slot."""
        return x.index_select(0, slots.order // self._top_k)

    def combine(self, out: torch.Tensor, slots: Sorted) -> torch.Tensor:
        """y [tokens, hidden] of the experts' outputs [N, hidden] in sorted order, weighted by the scores."""
        # Back in slot order, the k rows of a token lie together: no scattered addition is needed.
        by_slot = torch.empty_like(out).index_copy_(0, slots.order, out)
        weights = slots.scores.to(out.dtype).unsqueeze(1)
        return torch.bmm(weights, by_slot.view(-1, self._top_k, out.shape[1])).squeeze(1)
