"""Routing, activations and weights of a case, from its seed.

Routing is drawn first, exactly Zipf without replacement: logits = log p(expert) + Gumbel noise, and a token's experts
are its k largest; with groups, among the groups that are strongest by their two largest logits. A case with recorded
routing takes the experts from its file instead. Router weight and x are then made such that x @ router.T + bias gives
those logits exactly in any dtype (row e of the router is one-hot at feature e), so that every system, whatever its
GEMM, routes alike. Where more than the logits chooses, corrected.py makes the choice fall on the same experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import corrected, recorded
from .case import Case
from .dtypes import TORCH_DTYPE, rounded

MANTISSA_BITS = {"bf16": 7, "fp16": 10}
MIN_GAP = 0.0625
"""Losers lie at least this far under the k-th logit, so that scores rounded to 16 bits do not tie with it either."""
LEAST_WEIGHT = 1e-4
"""Recorded weights below it count as this much, whose logarithm 16 bits tell from its neighbours."""
GRID = 0.125
"""With a bias of the router, logits, biases and their differences are multiples of this up to `GRID_RANGE`, which
bfloat16 holds exactly up to 32: no sum of them is rounded anywhere."""
GRID_RANGE = 24.0


@dataclass(frozen=True)
class Routing:
    """What the router of a case decides.

    logits: float32 [tokens, num_experts], every value exact in the case's dtype;
    experts: int64 [tokens, top_k], the chosen experts, largest logit first; counts: int64 [num_experts].
    """

    logits: np.ndarray
    experts: np.ndarray
    counts: np.ndarray

    @property
    def active_experts(self) -> int:
        return int((self.counts > 0).sum())

    @property
    def max_expert_load(self) -> int:
        return int(self.counts.max())


def zipf_log_probabilities(num_experts: int, skew: float, rng: np.random.Generator) -> np.ndarray:
    """log P(expert), float64 [num_experts], with P(rank r) ~ r^-skew and ranks dealt to experts by `rng`."""
    log_p = -skew * np.log(np.arange(1, num_experts + 1))
    log_p -= np.log(np.exp(log_p).sum())
    return log_p[rng.permutation(num_experts)]


def router_bias(case: Case) -> np.ndarray:
    """The bias of a router that has one, float32 [num_experts], from -1 to 1 on the grid."""
    rng = np.random.default_rng([case.seed, case.num_experts, 3])
    return (GRID * rng.integers(-8, 9, case.num_experts)).astype(np.float32)


def draw_routing(case: Case) -> Routing:
    """The routing of a case; the same for the same case on any machine. Raises ValueError for a recording that does not
    fit the case, or is not there."""
    rng = np.random.default_rng([case.seed, case.num_experts, case.top_k, case.tokens])
    log_p = zipf_log_probabilities(case.num_experts, case.skew, rng)
    logits = log_p + rng.gumbel(size=(case.tokens, case.num_experts))
    given = None
    if case.routing != recorded.DRAWN:
        logits, given = _as_recorded(case, logits)
    elif case.gate.groups > 1:
        logits = corrected.within_strongest_groups(logits, case.gate)
    if case.gate.correction_bias:
        experts = _best_first(logits, case.top_k, given)
        return _routing(corrected.logits(case, logits, experts), experts, case.num_experts)
    if case.gate.scoring == "sigmoid":
        logits *= corrected.SIGMOID_RANGE / np.abs(logits).max()
    if case.facts.router_bias:
        logits = GRID * np.round(logits.clip(-GRID_RANGE, GRID_RANGE) / GRID)
    logits = rounded(logits, case.dtype)
    experts = _best_first(logits, case.top_k, given)
    kth = np.take_along_axis(logits, experts[:, -1:], axis=1)
    # The spacing of the dtype in the binade above |kth|: two units in the last place, also across a power of two.
    gap = np.maximum(MIN_GAP, 2 * np.exp2(np.floor(np.log2(np.abs(kth) + 1)) + 1 - MANTISSA_BITS[case.dtype]))
    if case.facts.router_bias:
        gap = np.maximum(gap, GRID)
    losers = np.ones_like(logits, dtype=bool)
    np.put_along_axis(losers, experts, False, axis=1)
    logits = np.where(losers, rounded(np.minimum(logits, kth - gap), case.dtype), logits)
    return _routing(logits, experts, case.num_experts)


def _best_first(logits: np.ndarray, top_k: int, given: np.ndarray | None) -> np.ndarray:
    """The experts with the k largest logits of each token, or those that are given, largest first; of equal ones the
    lower, or the first, comes first."""
    if given is None:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    order = np.argsort(-np.take_along_axis(logits, given, axis=1), axis=1, kind="stable")
    return np.take_along_axis(given, order, axis=1)


def _routing(logits: np.ndarray, experts: np.ndarray, num_experts: int) -> Routing:
    return Routing(logits, experts, np.bincount(experts.ravel(), minlength=num_experts))


def _as_recorded(case: Case, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logits, experts int64 [tokens, top_k]) of a recorded layer: each token's own logits, dealt anew such that the
    recorded experts have the largest ones, or the logarithms of their weights where those were recorded. A gating that
    renormalises gives these weights again, to 16 bits."""
    experts, weights = recorded.chosen(case.routing, case.num_experts, case.top_k, case.tokens, case.seed)
    ranked = -np.sort(-logits, axis=1)
    dealt = np.empty_like(logits)
    others = np.ones_like(logits, dtype=bool)
    np.put_along_axis(others, experts, False, axis=1)
    dealt[others] = ranked[:, case.top_k :].ravel()
    best = ranked[:, : case.top_k] if weights is None else np.log(np.maximum(weights, LEAST_WEIGHT))
    np.put_along_axis(dealt, experts, best, axis=1)
    return dealt, experts


def activations(case: Case, routing: Routing, device: str | torch.device) -> torch.Tensor:
    """x, [tokens, hidden_dim] in the case's dtype: the logits, less the bias of the router, in its first features,
    standard normal in the rest."""
    rng = np.random.default_rng([case.seed, case.tokens, case.hidden_dim, 1])
    x = rng.standard_normal((case.tokens, case.hidden_dim), dtype=np.float32)
    x[:, : case.num_experts] = routing.logits - router_bias(case) if case.facts.router_bias else routing.logits
    return torch.from_numpy(x).to(device=device, dtype=TORCH_DTYPE[case.dtype])
