"""Weights in a layout of a system's own, made once for all batch sizes of a shape."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from tritonmoe_bench.experiments.implementation.contract import Weights

Made = TypeVar("Made")


class Conversions(Generic[Made]):
    """What has been made of each weight set; it goes when the set does."""

    def __init__(self, make: Callable[[Weights], Made]) -> None:
        """make: from a weight set, and without a reference to it in the result."""
        self._make = make
        self._made: weakref.WeakKeyDictionary[Weights, Made] = weakref.WeakKeyDictionary()

    def __call__(self, weights: Weights) -> Made:
        if weights not in self._made:
            self._made[weights] = self._make(weights)
        return self._made[weights]

    def __len__(self) -> int:
        return len(self._made)
