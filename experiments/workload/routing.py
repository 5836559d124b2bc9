"""Routing, activations and weights of a case, from its seed.

Routing is drawn first, exactly Zipf without replacement: logits = log p(expert) + Gumbel noise, and a token's experts
are its k largest. A case with recorded routing takes the experts from its file instead. Router weight and x are then
made such that x @ router.T gives those logits exactly in any dtype (row e of the router is one-hot at feature e), so
that every system, whatever its GEMM, routes alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import recorded
from .case import Case

TORCH_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}
MANTISSA_BITS = {"bf16": 7, "fp16": 10}
MIN_GAP = 0.0625
"""Losers lie at least this far under the k-th logit, so that scores rounded to 16 bits do not tie with it either."""
SIGMOID_RANGE = 4.0
"""Logits are scaled into +-this for sigmoid scoring, where larger ones would saturate and tie."""
LEAST_WEIGHT = 1e-4
"""Recorded weights below it count as this much, whose logarithm 16 bits tell from its neighbours."""


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


def draw_routing(case: Case) -> Routing:
    """The routing of a case; the same for the same case on any machine. Raises ValueError for a recording that does not
    fit the case, or is not there."""
    rng = np.random.default_rng([case.seed, case.num_experts, case.top_k, case.tokens])
    log_p = zipf_log_probabilities(case.num_experts, case.skew, rng)
    logits = log_p + rng.gumbel(size=(case.tokens, case.num_experts))
    given = None
    if case.routing != recorded.DRAWN:
        logits, given = _as_recorded(case, logits)
    if case.gate.scoring == "sigmoid":
        logits *= SIGMOID_RANGE / np.abs(logits).max()
    logits = _round(logits, case.dtype)
    if given is None:
        experts = np.argsort(-logits, axis=1, kind="stable")[:, : case.top_k]
    else:
        order = np.argsort(-np.take_along_axis(logits, given, axis=1), axis=1, kind="stable")
        experts = np.take_along_axis(given, order, axis=1)
    kth = np.take_along_axis(logits, experts[:, -1:], axis=1)
    # The spacing of the dtype in the binade above |kth|: two units in the last place, also across a power of two.
    gap = np.maximum(MIN_GAP, 2 * np.exp2(np.floor(np.log2(np.abs(kth) + 1)) + 1 - MANTISSA_BITS[case.dtype]))
    losers = np.ones_like(logits, dtype=bool)
    np.put_along_axis(losers, experts, False, axis=1)
    logits = np.where(losers, _round(np.minimum(logits, kth - gap), case.dtype), logits)
    counts = np.bincount(experts.ravel(), minlength=case.num_experts)
    return Routing(logits, experts, counts)


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
    """x, [tokens, hidden_dim] in the case's dtype: the logits in its first features, standard normal in the rest."""
    rng = np.random.default_rng([case.seed, case.tokens, case.hidden_dim, 1])
    x = rng.standard_normal((case.tokens, case.hidden_dim), dtype=np.float32)
    x[:, : case.num_experts] = routing.logits
    return torch.from_numpy(x).to(device=device, dtype=TORCH_DTYPE[case.dtype])


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    """To the nearest value of the dtype, as float32."""
    return torch.from_numpy(values.astype(np.float32)).to(TORCH_DTYPE[dtype]).float().numpy()
