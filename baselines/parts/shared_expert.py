"""The shared expert of a native layer beside the routed ones, as two of PyTorch's GEMMs with a product in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tritonmoe_bench.experiments.workload.reference import activate

if TYPE_CHECKING:
    from tritonmoe_bench.experiments.implementation.contract import Case, Weights

Product = Callable[[torch.Tensor], torch.Tensor]
"""silu(gate) * up, [rows, width], of gate and up side by side, [rows, 2 * width]."""


def adds_shared(
    case: Case, weights: Weights, product: Product | None = None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(x, y) -> y + the shared expert of x, both [tokens, hidden]; y itself for a layer without one.

    product: the system's own kernel, by default PyTorch's operators one after another.
    """
    if not case.facts.shared_ffn:
        return lambda x, y: y
    gate_up, down, router = weights.shared_gate_up(), weights.shared_down().T, weights.shared_router()
    product = product or _product

    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = product(torch.nn.functional.linear(x, gate_up))
        if router is not None:
            hidden = hidden * torch.sigmoid(torch.nn.functional.linear(x, router))
        return torch.addmm(y, hidden, down)

    return add


def _product(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activate(gate, up, "silu")
