"""The correctness gate: no number stands in a row unless what was measured computes the layer.

An output is compared with the float32 reference before it is timed and, on other activations, after it: in the same
graph or eager, so that what was timed is what is checked. A forward may change neither x nor the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..workload.reference import relative_error
from ..workload.weights import Weights

TOLERANCE = 2.0
"""An output may be this many times as far from the float32 reference as PyTorch's own computation of the same kind."""
OWN = {"a16": "PyTorch's own in 16 bits", "a8": "that of an emulation with 8-bit activations in PyTorch"}
"""What the error is compared with, by the bits of the rows that enter the expert GEMMs."""


class IncorrectOutput(Exception):
    """An output failed the correctness gate."""


def check_output(
    y: object, reference: torch.Tensor, torch_error: float, dtype: torch.dtype | None = None, bits: str = "a16"
) -> float:
    """The relative error of an output. Raises IncorrectOutput if it is too large, or y no tensor of that shape.

    reference: float32, on the device of y; torch_error: the error of PyTorch's own computation with these bits, a key
    of `OWN`; dtype: what y must have, any by default.
    """
    if not isinstance(y, torch.Tensor) or y.shape != reference.shape:
        raise IncorrectOutput(f"output has shape {tuple(getattr(y, 'shape', ()))}, not {tuple(reference.shape)}")
    if dtype is not None and (y.dtype != dtype or y.device != reference.device):
        raise IncorrectOutput(f"output is {y.dtype} on {y.device}: it must be as x, {dtype} on {reference.device}")
    error, allowed = relative_error(y, reference), TOLERANCE * torch_error
    if not math.isfinite(error) or error > allowed:
        raise IncorrectOutput(
            f"relative error {error:.3g} against the float32 reference; "
            f"allowed is {allowed:.3g}, {TOLERANCE:g} x {OWN[bits]}"
        )
    return error


class Gate:
    """Checks one system on one case.

    x, other: activations [tokens, hidden_dim] of the same routing cost; reference, other_reference: the float32 outputs
    for them; torch_error: the relative error of PyTorch's own computation with these bits; sets: the weights in use.
    """

    def __init__(
        self, x: torch.Tensor, other: torch.Tensor, reference: torch.Tensor, other_reference: torch.Tensor,
        torch_error: float, sets: Sequence[Weights], bits: str = "a16",
    ) -> None:  # fmt: skip
        self.torch_error, self._bits = torch_error, bits
        self._x, self._other, self._kept = x, other, x.clone()
        self._reference, self._other_reference = reference, other_reference
        self._sets, self._sums = sets, [weights.checksums() for weights in sets]

    def check(self, y: object) -> float:
        """The relative error of an output for x. Raises IncorrectOutput."""
        return check_output(y, self._reference, self.torch_error, self._x.dtype, self._bits)

    def check_again(self, run: Callable[[], object]) -> None:
        """Checks what has been running: with other activations in the place of x, it must give their output.

        run: computes the output for whatever x holds. Raises IncorrectOutput, also if x or weights are not what they
        were.
        """
        if not torch.equal(self._x, self._kept):
            raise IncorrectOutput("the forward changed x")
        if self._sums != [{name: weights.checksums().get(name) for name in kept}
                          for weights, kept in zip(self._sets, self._sums)]:  # fmt: skip
            raise IncorrectOutput("the forward changed the weights")
        self._x.copy_(self._other)
        try:
            check_output(run(), self._other_reference, self.torch_error, self._x.dtype, self._bits)
        except IncorrectOutput as error:
            raise IncorrectOutput(f"after other runs, on other activations: {error}") from None
        finally:
            self._x.copy_(self._kept)
