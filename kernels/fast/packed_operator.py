"""`tritonmoe::fast_moe_packed`: `fast` over packed weights as one operator, for torch.compile and torch.export.

As operator.py, with the parts of the packed weights and the name of their format in place of two tensors.
"""

from __future__ import annotations

import torch

from ..formats import Packed, formats
from ..gating import Gating
from ..gradient import register_no_gradient


@torch.library.custom_op(
    "tritonmoe::fast_moe_packed",
    mutates_args=(),
    schema="(Tensor x, Tensor router_weight, Tensor gate_up, Tensor gate_up_scales, Tensor down, Tensor down_scales, "
    "str quant, int top_k, str scoring, bool renormalize, int groups, int top_groups, float scale, "
    "Tensor? correction_bias, str? activations) -> Tensor",
)
def fast_moe_packed_op(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scales: torch.Tensor,
    down: torch.Tensor,
    down_scales: torch.Tensor,
    quant: str,
    top_k: int,
    scoring: str,
    renormalize: bool,
    groups: int,
    top_groups: int,
    scale: float,
    correction_bias: torch.Tensor | None,
    activations: str | None,
) -> torch.Tensor:
    """`fast_moe` of packed weights, whose values come as uint8; quant: a name of `formats`."""
    from .packed import forward_packed  # which imports this file

    kind = formats()[quant]
    gating = Gating(scoring, renormalize, groups, top_groups, correction_bias is not None, scale)
    packed = kind.from_raw(gate_up, gate_up_scales), kind.from_raw(down, down_scales)
    return forward_packed(x, router_weight, *packed, top_k, gating, correction_bias, None, activations)


@fast_moe_packed_op.register_fake
def _(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


register_no_gradient(fast_moe_packed_op)


def traced_fast_moe_packed(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: Packed,
    down: Packed,
    top_k: int,
    gating: Gating | None,
    correction_bias: torch.Tensor | None,
    activations: str | None,
) -> torch.Tensor:
    """A call of `fast_moe` with packed weights as it is put into a graph. What its checks find is raised when it runs.

    Raises ValueError for a correction_bias that the gating does not fit.
    """
    gating = Gating() if gating is None else gating
    if gating.correction_bias != (correction_bias is not None):
        raise ValueError("correction_bias must be given exactly when the gating has one")
    plain = (gating.scoring, gating.renormalize, gating.groups, gating.top_groups, gating.scale)
    parts = (gate_up.raw(), gate_up.scales, down.raw(), down.scales, gate_up.name)
    return fast_moe_packed_op(x, router_weight, *parts, top_k, *plain, correction_bias, activations)
