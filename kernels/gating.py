"""How router logits become expert weights: the gatings that Mixture-of-Experts models use.

A plain description with no tensor in it, so that kernels, baselines and the reference all read the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

SCORINGS = ("softmax", "sigmoid")
LEAST_SUM = 1e-20
"""Added to the sum of the chosen scores before they are divided by it, as the code of DeepSeek-V3 does: sigmoid scores
that all underflow give weights of 0, and not of 0 / 0."""


@dataclass(frozen=True)
class Gating:
    """Scoring and selection of the k experts of a token.

    scoring: ``softmax`` over all experts, or an independent ``sigmoid`` per expert.
    renormalize: divide the k chosen scores by their sum (Mixtral, DeepSeek-V3), plus `LEAST_SUM`.
    groups, top_groups: group-limited selection (DeepSeek-V3, arXiv 2412.19437): experts lie in ``groups`` equal
        groups, a group's score is the sum of its two best, and only the ``top_groups`` best groups may be chosen from.
    correction_bias: selection, but not the weight, uses score + bias, a float32 vector of one entry an expert.
    scale: factor on the final weights (``routed_scaling_factor``).

    Raises ValueError for a scoring that is not known and for groups that cannot be.
    """

    scoring: str = "softmax"
    renormalize: bool = False
    groups: int = 1
    top_groups: int = 1
    correction_bias: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, got {self.scoring!r}")
        if not 1 <= self.top_groups <= self.groups:
            raise ValueError(f"top_groups must lie in 1..groups={self.groups}, got {self.top_groups}")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")


GATINGS: dict[str, Gating] = {
    "softmax": Gating(),
    "softmax_renorm": Gating(renormalize=True),
    "sigmoid": Gating(scoring="sigmoid"),
    "sigmoid_renorm": Gating(scoring="sigmoid", renormalize=True),
    "deepseek_v3": Gating("sigmoid", True, groups=8, top_groups=4, correction_bias=True, scale=2.5),
    "kimi_k2": Gating("sigmoid", True, correction_bias=True, scale=2.827),
    "glm_4_5": Gating("sigmoid", True, correction_bias=True, scale=2.5),
    "minimax_m2": Gating("sigmoid", True, correction_bias=True),
}
"""By the name that stands in configs and in the column `gating` of the CSVs."""
