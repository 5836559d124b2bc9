"""Logits for a gating that chooses by more than them: by score + correction bias, and within the strongest groups.

They are moved so that this choice falls on the experts that were drawn, whatever a system rounds on its way there.
"""

from __future__ import annotations

import numpy as np

from tritonmoe_bench.kernels.gating import Gating

from .case import Case
from .dtypes import rounded

SIGMOID_RANGE = 4.0
"""Logits are scaled into +-this for sigmoid scoring, where larger ones would saturate and tie."""
BIAS_SCALE = 0.02
"""Standard deviation of the correction bias."""
GAP = 0.03
"""The choice (score + bias) of a loser is at least this far under that of the k-th, which 16 bits tell apart."""


def correction_bias(case: Case) -> np.ndarray:
    """The correction bias of a gating that has one, float32 [num_experts]."""
    rng = np.random.default_rng([case.seed, case.num_experts, 2])
    return BIAS_SCALE * rng.standard_normal(case.num_experts, dtype=np.float32)


def within_strongest_groups(logits: np.ndarray, gate: Gating) -> np.ndarray:
    """The logits [tokens, num_experts], but minus infinity outside of each token's `top_groups` groups with the largest
    sums of their two largest logits."""
    grouped = logits.reshape(len(logits), gate.groups, -1)
    strength = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    weaker = np.ones(strength.shape, dtype=bool)
    np.put_along_axis(weaker, np.argsort(-strength, axis=1, kind="stable")[:, : gate.top_groups], False, axis=1)
    return np.where(weaker[:, :, None], -np.inf, grouped).reshape(logits.shape)


def logits(case: Case, drawn: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """float32 [tokens, num_experts], exact in the case's dtype: its gating chooses `experts` by them.

    drawn: [tokens, num_experts]; experts: [tokens, top_k], largest first, which keep their order, with scores of at
    least 1/2. The choice of any other lies `GAP` under theirs; outside of their groups it is so low that two of them
    are weaker than one of theirs. Raises ValueError for experts of more groups than the gating allows.
    """
    bias = correction_bias(case).astype(np.float64)
    won = np.take_along_axis(drawn, experts, axis=1)
    won = won - won.min()
    won = rounded(SIGMOID_RANGE * won / max(won.max(), 1.0), case.dtype)
    choice = 1 / (1 + np.exp(-won.astype(np.float64))) + bias[experts]
    score = (choice.min(axis=1, keepdims=True) - GAP - bias).clip(max=0.99)  # at most that of a loser
    lost = np.minimum(drawn, np.log(score / (1 - score)))
    groups = np.arange(case.num_experts) // (case.num_experts // case.gate.groups)
    theirs = (groups[experts][:, :, None] == np.arange(case.gate.groups)).any(axis=1)  # [tokens, groups]
    if theirs.sum(axis=1).max() > case.gate.top_groups:
        raise ValueError(
            f"{case.routing}: has tokens with experts of {theirs.sum(axis=1).max()} groups, where gating={case.gating} "
            f"takes {case.gate.top_groups}"
        )
    made = rounded(np.where(theirs[:, groups], lost, -SIGMOID_RANGE).clip(-SIGMOID_RANGE), case.dtype)
    np.put_along_axis(made, experts, won, axis=1)
    return made
