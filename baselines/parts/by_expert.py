"""A MoE layer around somebody's expert GEMMs: router, sort of slots by expert, permute, SiLU x up, weighted combine.

Plain PyTorch and one small kernel, without a wait for the host; the two GEMMs are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from tritonmoe_bench.experiments.workload.reference import route

from .silu_gate import silu_gate

if TYPE_CHECKING:
    from tritonmoe_bench.experiments.implementation.contract import Case, Forward, Weights


class Buffers(NamedTuple):
    """Rows sorted by expert, [N, width]: rows of x, gate and up side by side, their product, the experts' outputs."""

    rows: torch.Tensor
    gate_up: torch.Tensor
    hidden: torch.Tensor
    out: torch.Tensor


Gemms = Callable[[torch.Tensor, Buffers], "tuple[Callable[[], object], Callable[[], object]]"]
"""(ends, buffers) -> what launches the gate and up GEMM, `rows` to `gate_up`, and the down GEMM, `hidden` to `out`."""


def forward_by_expert(
    case: Case, weights: Weights, gemms: Gemms, begin: Callable[[torch.Tensor], None] | None = None
) -> Forward:
    """The layer's forward with these GEMMs. `begin` is called with `ends` as soon as they are known on the GPU."""
    layer, ffn_dim = ByExpert(case, weights), case.ffn_dim

    def forward(x: torch.Tensor) -> torch.Tensor:
        slots = layer.sort(x)
        if begin is not None:
            begin(slots.ends)
        rows = layer.rows(x, slots)
        gate_up, hidden = (rows.new_empty((rows.shape[0], width)) for width in (2 * ffn_dim, ffn_dim))
        buffers = Buffers(rows, gate_up, hidden, torch.empty_like(rows))
        first, second = gemms(slots.ends, buffers)
        first()
        silu_gate(gate_up, hidden)
        second()
        return layer.combine(buffers.out, slots)

    return forward


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
