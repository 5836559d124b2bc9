"""Where the experts of a token come from: the layer's own router, or routing that the caller has done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..checks import MAX_SLOTS
from ..gating import Gating
from .blocks import Blocks, launch_place, launch_routing
from .experts import Experts
from .joined import launch_own
from .local import Local
from .logits import launch_logits, pieces
from .routing import launch_top_k


@dataclass(frozen=True)
class Router:
    """weight: [num_experts, hidden]; bias: [num_experts], added to the logits; the rest as in `fast_moe`."""

    weight: torch.Tensor
    top_k: int
    gating: Gating
    correction_bias: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    local = None
    """All its experts are here."""

    @property
    def num_experts(self) -> int:
        """All experts that tokens are spread over."""
        return self.weight.shape[0]

    def logits_of_token(self, hidden: int, invariant: bool) -> int:
        """How many logits of all parts a token has in a batch of many tokens."""
        return self.num_experts * (pieces(MAX_SLOTS, hidden, self.num_experts, True)[0] if invariant else 1)

    def of(self, rows: slice) -> Router:
        """For a part of the tokens."""
        return self

    def choose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(experts, weights), each [tokens, top_k]."""
        return launch_top_k(launch_logits(x, self.weight), self.top_k, self.gating, self.correction_bias, self.bias)

    def counted(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(experts, weights, arrivals) as `launch_joined` takes them."""
        logits = launch_logits(x, self.weight)
        arrivals = torch.empty(x.shape[0], self.top_k, dtype=torch.int32, device=x.device)
        chosen = launch_top_k(logits, self.top_k, self.gating, self.correction_bias, self.bias, arrivals=arrivals)
        return *chosen, arrivals

    def blocks(self, x: torch.Tensor, block_m: int, invariant: bool, counted: bool) -> Blocks:
        """Weights, order and row blocks of at most block_m rows; invariant: as in `launch_logits`; counted: as in
        `launch_place`."""
        logits = launch_logits(x, self.weight, invariant)
        gating = self.top_k, self.gating, self.correction_bias
        return launch_routing(logits, *gating, block_m, self.bias, invariant, counted)


@dataclass(frozen=True)
class Chosen:
    """experts: int32 or int64 [tokens, top_k]; weights: the same shape, float32 or 16 bits; both contiguous.

    local: which experts are here; the ids may be any.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    local: Local

    @classmethod
    def outside(
        cls, topk_ids: torch.Tensor, topk_weights: torch.Tensor, num_experts: int, expert_map: torch.Tensor | None
    ) -> Chosen:
        """Of routing as `fast_experts` takes it, whose shapes the checks have not seen yet."""
        ids, weights = map(_as_slots, (topk_ids, topk_weights))
        return cls(ids, weights, Local(num_experts, expert_map))

    @property
    def top_k(self) -> int:
        return self.experts.shape[1]

    @property
    def num_experts(self) -> int:
        """All experts that tokens are spread over."""
        return self.local.total

    def logits_of_token(self, hidden: int, invariant: bool) -> int:
        """There are none, and so no limit: 1."""
        return 1

    def of(self, rows: slice) -> Chosen:
        """For a part of the tokens."""
        return replace(self, experts=self.experts[rows], weights=self.weights[rows])

    def choose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(experts, weights), each [tokens, top_k]."""
        return self.experts, self.weights

    def counted(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(experts, weights, arrivals) as `launch_joined` takes them."""
        return launch_own(self.experts, self.weights, self.local)

    def blocks(self, x: torch.Tensor, block_m: int, invariant: bool, counted: bool) -> Blocks:
        """Weights, order and row blocks of at most block_m rows."""
        return Blocks(self.weights, *launch_place(self.experts, self.local.num_experts, block_m, self.local, counted))


def joinable(route: Router | Chosen, experts: Experts) -> bool:
    """Whether the joined path can run: what weights multiply before gate and up cannot be summed over the slots of a
    token that a caller gives the same expert."""
    return isinstance(route, Router) or route.top_k == 1 or not experts.epilogue.weights_on_input


def _as_slots(tensor: torch.Tensor) -> torch.Tensor:
    """[..., top_k] as [tokens, top_k], contiguous; anything else as it is, for the checks to say so."""
    if not isinstance(tensor, torch.Tensor) or not tensor.dim() or not tensor.shape[-1]:
        return tensor
    return (tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])).contiguous()
