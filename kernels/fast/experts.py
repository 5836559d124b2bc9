"""The experts of a layer, as `fast` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..formats import Packed
from .epilogue import PLAIN, Epilogue
from .tiled import is_tiled, matrices


@dataclass(frozen=True)
class Experts:
    """gate_up [num_experts, 2 * ffn, hidden] and down [num_experts, hidden, ffn], both tensors, both `tiled` ones, or
    both packed.

    activations: ``a8`` or ``a16``, what packed weights are multiplied with; None: by the device.
    """

    gate_up: torch.Tensor | Packed
    down: torch.Tensor | Packed
    epilogue: Epilogue = PLAIN
    activations: str | None = None

    @property
    def packed(self) -> bool:
        return isinstance(self.gate_up, Packed) or isinstance(self.down, Packed)

    @property
    def num_experts(self) -> int:
        """As down has it; 1 where that is no stack of matrices, which its check says."""
        shape = list(getattr(self.down, "shape", ()))
        return shape[0] if len(shape) in (3, 5) else 1

    @property
    def in_tiles(self) -> bool:
        return is_tiled(self.down)

    @property
    def ffn(self) -> int:
        return matrices(self.down)[2]
