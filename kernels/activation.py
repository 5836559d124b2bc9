"""What an expert does with its gate and up products: the activations that Mixture-of-Experts models use.

A plain description with no tensor in it, as `Gating` is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FUNCTIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class Activation:
    """inner = f(gate) * (up + shift), computed in float32.

    function: ``silu``, f(g) = g * sigmoid(alpha * g), or ``gelu_tanh``, PyTorch's gelu with approximate="tanh".
    limit: gate is cut to at most this before, and up to within plus and minus this; None cuts nothing.
    alpha: a factor inside of SiLU's sigmoid. shift: added to up.

    Raises ValueError for a function that is not known, a limit that is not positive, numbers that are not finite, and
    an alpha that the function has no place for.
    """

    function: str = "silu"
    alpha: float = 1.0
    shift: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(f"function must be one of {', '.join(FUNCTIONS)}, got {self.function!r}")
        if not (math.isfinite(self.alpha) and math.isfinite(self.shift)):
            raise ValueError(f"alpha and shift must be finite, got {self.alpha} and {self.shift}")
        if self.limit is not None and not (self.limit > 0 and math.isfinite(self.limit)):
            raise ValueError(f"limit must be positive and finite, or None, got {self.limit}")
        if self.function != "silu" and self.alpha != 1.0:
            raise ValueError(f"alpha belongs to silu: {self.function} takes alpha=1.0, got {self.alpha}")

    @classmethod
    def of(cls, activation: Activation | str) -> Activation:
        """An activation, or the one of `ACTIVATIONS` by its name. Raises TypeError or ValueError."""
        if isinstance(activation, cls):
            return activation
        if not isinstance(activation, str):
            raise TypeError(f"activation must be an Activation or its name, got {type(activation).__name__}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: allowed are {', '.join(ACTIVATIONS)}, or an Activation")
        return ACTIVATIONS[activation]


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(),
    "gelu_tanh": Activation("gelu_tanh"),
    "gpt_oss": Activation(alpha=1.702, shift=1.0, limit=7.0),
}
"""By name. gpt_oss: the clamped SwiGLU of the model's published code (github.com/openai/gpt-oss, `swiglu`)."""
