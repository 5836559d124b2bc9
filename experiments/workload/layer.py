"""What a model's own MoE layer has beside its gating and plain SwiGLU experts: facts without a tensor."""

from __future__ import annotations

from dataclasses import dataclass, fields

ACTIVATIONS = ("silu", "gpt_oss")
"""Of kernels/activation.py, those that systems are asked for. ``silu``: silu(gate) * up. ``gpt_oss``, clamped: gate at
most 7, up within +-7, then (up + 1) * gate * sigmoid(1.702 * gate)."""
LAYERS = ("plain", "native")
NEEDS = {
    "activation": "another activation",
    "router_bias": "a bias of the router",
    "float32_router": "a float32 router",
    "expert_bias": "biases of the experts",
    "shared_ffn": "a shared expert",
    "weights_on_input": "routing weights on the experts' input",
}
"""Fields of `Layer` that a system has to be able to compute, in words; `shared_gate` comes with its shared expert."""


@dataclass(frozen=True)
class Layer:
    """A layer's parts beside router and experts. The defaults are the plain layer.

    activation: a name of `ACTIVATIONS`; router_bias: the logits have one; float32_router: the router's weight, and so
    its product, is float32; expert_bias: gate, up and down have one each; shared_ffn: width of an expert that every
    token takes, 0 for none; shared_gate: its output is multiplied by the sigmoid of a product of x; weights_on_input:
    the routing weight multiplies an expert's input, not its output.

    Raises ValueError, with what is allowed, for a layer that cannot be.
    """

    activation: str = "silu"
    router_bias: bool = False
    float32_router: bool = False
    expert_bias: bool = False
    shared_ffn: int = 0
    shared_gate: bool = False
    weights_on_input: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation}: allowed are {', '.join(ACTIVATIONS)}")
        if isinstance(self.shared_ffn, bool) or not isinstance(self.shared_ffn, int) or self.shared_ffn < 0:
            raise ValueError(f"shared_ffn={self.shared_ffn!r}: a whole number of at least 0 is needed")
        if self.shared_gate and not self.shared_ffn:
            raise ValueError("shared_gate=true: needs a shared expert, shared_ffn above 0")

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields, among `NEEDS`, in which it is another layer than the plain one."""
        return tuple(field.name for field in fields(self) if field.name in NEEDS and self._differs(field.name))

    def _differs(self, name: str) -> bool:
        return getattr(self, name) != getattr(PLAIN_LAYER, name)


PLAIN_LAYER = Layer()
