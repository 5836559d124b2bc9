"""What an experts module of transformers does with its gate and up products, found by asking it.

Its class says neither: the activation may be an attribute, a method, or written out with numbers from the config. So
the method is run once on a few numbers, and compared with each `Activation` that the module's own numbers can make.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..activation import FUNCTIONS, Activation

VALUES = (-24.0, -8.0, -3.0, -0.75, 0.0, 0.5, 2.0, 6.5, 9.0, 30.0)
"""Of gate and of up, each with each: around the origin, where activations differ, and far out, where limits act."""
TOLERANCE = 1e-4
"""Relative and absolute. A module may compute in float32; GELU and its tanh differ by more at these values."""


@dataclass(frozen=True)
class Gate:
    """activation: what is computed; interleaved: whether gate and up columns alternate, gate first, or all gate columns
    come before all up columns."""

    activation: Activation
    interleaved: bool


def gate_of(module: Any) -> Gate | None:
    """The gate of an experts module by its method `_apply_gate`; None where no `Activation` computes the same."""
    gate, up = (values.flatten()[None] for values in torch.meshgrid(*2 * [torch.tensor(VALUES)], indexing="ij"))
    with torch.no_grad():
        for interleaved in (False, True):
            products = torch.stack([gate, up], 2).flatten(1) if interleaved else torch.cat([gate, up], 1)
            try:
                given = module._apply_gate(products).float()
            except (AttributeError, TypeError, RuntimeError, IndexError):
                return None  # it needs more than the products: no `Activation` stands for it
            for activation in _candidates(module):
                wanted = activate(activation, gate, up)
                if given.shape == wanted.shape and torch.allclose(given, wanted, TOLERANCE, TOLERANCE):
                    return Gate(activation, interleaved)
    return None


def activate(activation: Activation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What an `Activation` makes of float32 gate and up products, in PyTorch."""
    if activation.limit is not None:
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    if activation.function == "silu":
        gate = gate * torch.sigmoid(activation.alpha * gate)
    else:
        gate = torch.nn.functional.gelu(gate, approximate="tanh")
    return gate * (up + activation.shift)


def _candidates(module: Any) -> Iterator[Activation]:
    """Every activation that the numbers of a module can make, the plain ones first."""
    limits = (None, *_numbers(module, ("limit", "swiglu_limit")))
    alphas = (1.0, *_numbers(module, ("alpha", "swiglu_alpha")))
    for function, limit, shift, alpha in itertools.product(FUNCTIONS, limits, (0.0, 1.0), alphas):
        if function == "silu" or alpha == 1.0:
            yield Activation(function, alpha, shift, limit)


def _numbers(module: Any, names: tuple[str, ...]) -> list[float]:
    found = [getattr(holder, name, None) for holder in (module, getattr(module, "config", None)) for name in names]
    return list(dict.fromkeys(float(value) for value in found if isinstance(value, (int, float)) and value > 0))
