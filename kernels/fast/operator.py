"""`tritonmoe::fast_moe`: `fast` as one operator, which torch.compile and torch.export keep whole instead of tracing it.

Its arguments are tensors and plain values, the gating one by one. It is only used while a graph is being traced, or
shapes alone are computed: an eager call of `fast_moe` does not pass through the dispatcher, unless another thread is
compiling at that moment.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..gating import Gating
from ..gradient import register_no_gradient
from .tile_types import FastTiles, FewTiles

_PLAIN = Gating()


@torch.library.custom_op(
    "tritonmoe::fast_moe",
    mutates_args=(),
    schema="(Tensor x, Tensor router_weight, Tensor gate_up, Tensor down, int top_k, str scoring, bool renormalize, "
    "int groups, int top_groups, float scale, Tensor? correction_bias) -> Tensor",
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
) -> torch.Tensor:
    """`fast_moe` with the fields of its gating; correction_bias is given exactly when the gating has one."""
    from .forward import forward  # which imports this file

    gating = Gating(scoring, renormalize, groups, top_groups, correction_bias is not None, scale)
    return forward(x, router_weight, gate_up, down, top_k, gating, correction_bias, None)


@fast_moe_op.register_fake
def _(x, router_weight, gate_up, down, *_) -> torch.Tensor:
    return x.new_empty(x.shape)


register_no_gradient(fast_moe_op)


def is_traced(x: torch.Tensor) -> bool:
    """Whether a graph is recorded of calls with x, or only shapes are computed: under make_fx and FakeTensorMode."""
    modes = torch._C._TorchDispatchModeKey
    return isinstance(x, FakeTensor) or any(map(torch._C._get_dispatch_mode, (modes.FAKE, modes.PROXY)))


def traced_fast_moe(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    gating: Gating | None,
    correction_bias: torch.Tensor | None,
    tiles: FastTiles | FewTiles | None,
) -> torch.Tensor:
    """A call of `fast_moe` as it is put into a graph. What its checks find wrong is raised when the graph runs.

    Raises ValueError for tiles, which an operator cannot take, and for a correction_bias that the gating does not fit:
    torch.compile then leaves the call out of its graph, or refuses it with fullgraph=True.
    """
    gating = _PLAIN if gating is None else gating
    if tiles is not None:
        raise ValueError("tiles cannot be given where a graph is traced, as by torch.compile: there they are chosen")
    if gating.correction_bias != (correction_bias is not None):
        raise ValueError("correction_bias must be given exactly when the gating has one")
    return fast_moe_op(
        x, router_weight, gate_up, down, top_k, gating.scoring, gating.renormalize, gating.groups, gating.top_groups,
        gating.scale, correction_bias,
    )  # fmt: skip
