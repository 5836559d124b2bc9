"""What an experts module computes with its gate and up products, found by asking it."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from tritonmoe_bench.kernels.activation import ACTIVATIONS, Activation
from tritonmoe_bench.kernels.integrations.gates import Gate, activate, gate_of


def module(function, interleaved=False, **numbers):
    """A module with such a gate: function(gate, up)."""

    def apply_gate(products):
        gate, up = (products[..., ::2], products[..., 1::2]) if interleaved else products.chunk(2, -1)
        return function(gate, up)

    return SimpleNamespace(_apply_gate=apply_gate, **numbers)


def clamped(gate, up, limit=7.0, alpha=1.702, shift=1):
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + shift) * gate * torch.sigmoid(alpha * gate)


FOUND = [
    (module(lambda gate, up: functional.silu(gate) * up), ACTIVATIONS["silu"], False),
    (module(lambda gate, up: functional.silu(gate) * up, interleaved=True), ACTIVATIONS["silu"], True),
    (module(lambda gate, up: functional.gelu(gate, approximate="tanh") * up), ACTIVATIONS["gelu_tanh"], False),
    (module(clamped, interleaved=True, limit=7.0, alpha=1.702), ACTIVATIONS["gpt_oss"], True),
    (module(clamped, swiglu_limit=7.0, swiglu_alpha=1.702), ACTIVATIONS["gpt_oss"], False),
    (module(lambda gate, up: clamped(gate, up, 10.0, 1.0, 0), config=SimpleNamespace(swiglu_limit=10)),
     Activation(limit=10.0), False),
    (module(lambda gate, up: functional.silu(gate.bfloat16().float()) * up), ACTIVATIONS["silu"], False),
]  # fmt: skip
NOT_FOUND = {
    "exact GELU": lambda gate, up: functional.gelu(gate) * up,
    "ReLU": lambda gate, up: functional.relu(gate) * up,
    "up first": lambda gate, up: functional.silu(up) * gate,
    "a limit that the module does not tell": clamped,
    "no gating": lambda gate, up: functional.silu(gate),
    "another shape": lambda gate, up: torch.cat([gate, up], -1),
}


@pytest.mark.parametrize(("asked", "activation", "interleaved"), FOUND)
def test_what_is_computed_is_found(asked, activation, interleaved):
    assert gate_of(asked) == Gate(activation, interleaved)


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_no_activation_computes_is_not_found(name):
    assert gate_of(module(NOT_FOUND[name])) is None


def test_a_gate_that_needs_more_than_its_products_is_not_found():
    assert gate_of(SimpleNamespace()) is None
    assert gate_of(SimpleNamespace(_apply_gate=lambda products, scale: products)) is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_told_apart(name):
    gate, up = torch.tensor([-3.0, 0.5, 9.0]), torch.tensor([2.0, -8.0, 30.0])
    own = activate(ACTIVATIONS[name], gate, up)
    assert all(torch.equal(own, activate(other, gate, up)) == (key == name) for key, other in ACTIVATIONS.items())
