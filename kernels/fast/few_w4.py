"""The output-centric path of `fast` over prepared weights of four bits: as few.py, with the same two kernels.

x as planes (few_w4_parts.py) -> gate and up -> down.
"""

from __future__ import annotations

import torch

from ..formats.four_bits import FourBits
from .epilogue import PLAIN, Epilogue
from .few_w4_down import launch_few_down_w4
from .few_w4_gate_up import launch_few_gate_up_w4
from .local import Local
from .tile_types import FewTiles


def launch_few_w4(
    planes: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: FourBits,
    down: FourBits,
    tiles: FewTiles,
    y: torch.Tensor,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> None:
    """Writes y [tokens, hidden], contiguous, of any float type.

    planes: of x, as `launch_planes` gives them. gate_up and down: prepared, of one format. experts, weights: [tokens,
    top_k]; they, and errors: as in `launch_few`.
    """
    hidden = launch_few_gate_up_w4(planes, gate_up, experts, weights, tiles.gate_up, epilogue, local)
    launch_few_down_w4(hidden, down, experts, weights, y, tiles.down, epilogue, local)
