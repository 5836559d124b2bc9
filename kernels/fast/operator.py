"""`tritonmoe::fast_moe` and `tritonmoe::fast_experts`: `fast` as operators, which torch.compile and torch.export keep
whole instead of tracing them.

Their arguments are tensors and plain values: gating and activation field by field, packed weights as their parts. They
are only used while a graph is being traced, or shapes alone are computed: an eager call does not pass through the
dispatcher, unless another thread is compiling at that moment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..activation import Activation
from ..formats import Packed, formats
from ..gating import Gating
from ..gradient import register_no_gradient
from .epilogue import Epilogue
from .experts import Experts
from .forward import forward
from .route import Chosen, Router

_TRACING = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
_EXPERTS = (
    "Tensor? gate_up_scales=None, Tensor? down_scales=None, str? quant=None, Tensor? gate_up_bias=None, "
    "Tensor? down_bias=None, str function='silu', float alpha=1.0, float shift=0.0, float? limit=None, "
    "bool weights_on_input=False, str? activations=None, bool invariant=False"
)


def _experts(
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_scales: torch.Tensor | None = None,
    down_scales: torch.Tensor | None = None,
    quant: str | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    function: str = "silu",
    alpha: float = 1.0,
    shift: float = 0.0,
    limit: float | None = None,
    weights_on_input: bool = False,
    activations: str | None = None,
    invariant: bool = False,
) -> tuple[Experts, bool]:
    """(experts, invariant) of an operator's arguments; quant: a name of `formats`, for values that came as uint8."""
    epilogue = Epilogue(Activation(function, alpha, shift, limit), gate_up_bias, down_bias, weights_on_input)
    if quant is None:
        return Experts(gate_up, down, epilogue, activations), invariant
    assert gate_up_scales is not None
    assert down_scales is not None
    kind = formats()[quant]
    packed = kind.from_raw(gate_up, gate_up_scales), kind.from_raw(down, down_scales)
    return Experts(*packed, epilogue, activations), invariant


def _flat(
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    activation: Activation,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    weights_on_input: bool,
    activations: str | None,
    invariant: bool,
) -> tuple[torch.Tensor, torch.Tensor, tuple]:
    """What `_experts` takes: both weights, and the rest."""
    parts: list[Any] = [None, None, None]
    if isinstance(gate_up, Packed) and isinstance(down, Packed):
        parts = [gate_up.scales, down.scales, gate_up.name]
        gate_up, down = gate_up.raw(), down.raw()
    elif isinstance(gate_up, Packed) or isinstance(down, Packed):
        raise TypeError("gate_up and down must both be packed, or both be tensors")
    fields = (activation.function, activation.alpha, activation.shift, activation.limit)
    rest = (*parts, gate_up_bias, down_bias, *fields, weights_on_input, activations, invariant)
    return gate_up, down, rest


@torch.library.custom_op(
    "tritonmoe::fast_moe",
    mutates_args=(),
    schema="(Tensor x, Tensor router_weight, Tensor gate_up, Tensor down, int top_k, str scoring, bool renormalize, "
    f"int groups, int top_groups, float scale, Tensor? correction_bias, Tensor? router_bias=None, {_EXPERTS}) "
    "-> Tensor",
)
def fast_moe_op(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    scoring: str,
    renormalize: bool,
    groups: int,
    top_groups: int,
    scale: float,
    correction_bias: torch.Tensor | None,
    router_bias: torch.Tensor | None = None,
    *rest: Any,
) -> torch.Tensor:
    """`fast_moe` with the fields of its gating; correction_bias is given exactly when the gating has one."""
    gating = Gating(scoring, renormalize, groups, top_groups, correction_bias is not None, scale)
    experts, invariant = _experts(gate_up, down, *rest)
    return forward(x, Router(router_weight, top_k, gating, correction_bias, router_bias), experts, invariant=invariant)


@torch.library.custom_op(
    "tritonmoe::fast_experts",
    mutates_args=(),
    schema="(Tensor x, Tensor gate_up, Tensor down, Tensor topk_ids, Tensor topk_weights, Tensor? expert_map=None, "
    f"{_EXPERTS}) -> Tensor",
)
def fast_experts_op(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    *rest: Any,
) -> torch.Tensor:
    """`fast_experts`."""
    experts, invariant = _experts(gate_up, down, *rest)
    chosen = Chosen.outside(topk_ids, topk_weights, experts.num_experts, expert_map)
    return forward(x, chosen, experts, invariant=invariant)


@fast_moe_op.register_fake
@fast_experts_op.register_fake
def _(x: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape)


register_no_gradient(fast_moe_op)
register_no_gradient(fast_experts_op)


def is_traced(x: torch.Tensor) -> bool:
    """Whether a graph is recorded of calls with x, or only shapes are computed: under make_fx and FakeTensorMode."""
    return isinstance(x, FakeTensor) or any(map(torch._C._get_dispatch_mode, _TRACING))


def traced_fast_moe(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    top_k: int,
    gating: Gating,
    router_bias: torch.Tensor | None,
    correction_bias: torch.Tensor | None,
    *options: Any,
) -> torch.Tensor:
    """A call of `fast_moe` as it is put into a graph; options: the rest of `_flat`'s arguments. What its checks find
    wrong is raised when the graph runs.

    Raises ValueError for a correction_bias that the gating does not fit: torch.compile then leaves the call out of its
    graph, or refuses it with fullgraph=True.
    """
    if gating.correction_bias != (correction_bias is not None):
        raise ValueError("correction_bias must be given exactly when the gating has one")
    gate_up, down, rest = _flat(gate_up, down, *options)
    plain = (top_k, gating.scoring, gating.renormalize, gating.groups, gating.top_groups, gating.scale)
    return fast_moe_op(x, router_weight, gate_up, down, *plain, correction_bias, router_bias, *rest)


def traced_fast_experts(
    x: torch.Tensor,
    gate_up: torch.Tensor | Packed,
    down: torch.Tensor | Packed,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    expert_map: torch.Tensor | None,
    *options: Any,
) -> torch.Tensor:
    """A call of `fast_experts` as it is put into a graph, as `traced_fast_moe`."""
    gate_up, down, rest = _flat(gate_up, down, *options)
    return fast_experts_op(x, gate_up, down, topk_ids, topk_weights, expert_map, *rest)
