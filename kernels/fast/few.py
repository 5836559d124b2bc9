"""The output-centric path of `fast`, for a few tokens: no schedule, no combine, no matrix units.

logits -> experts and weights -> gate_up, whose programs own a slot and a few neurons of its expert -> down, whose
programs own a token and a few outputs and sum over its k experts in registers. N = tokens * top_k slots; tokens that
share an expert read its weights twice, the second time from L2.
"""

from __future__ import annotations

import torch

from ..formats.fp8_block import Fp8Block
from .epilogue import PLAIN, Epilogue
from .few_down import launch_few_down
from .few_gate_up import launch_few_gate_up
from .local import Local
from .tile_types import FewTiles


def launch_few(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor | Fp8Block,
    down: torch.Tensor | Fp8Block,
    tiles: FewTiles,
    y: torch.Tensor,
    epilogue: Epilogue = PLAIN,
    local: Local | None = None,
) -> None:
    """Writes y [tokens, hidden], contiguous, of any float type.

    x: 16 bits [tokens, hidden], of any stride between rows. experts: int32 [tokens, top_k], or any ids, int32 or int64,
    of which `local` says which are here; weights: the same shape, float32 or 16 bits; both contiguous. gate_up
    [num_experts, 2 * ffn, hidden] and down [num_experts, hidden, ffn]: as `Experts` has them. Checks nothing: raises
    what a compiler raises for tiles that `check_format` does not allow.
    """
    hidden = launch_few_gate_up(x, gate_up, experts, weights, tiles.gate_up, epilogue, local)
    launch_few_down(hidden, down, experts, weights, y, tiles.down, epilogue, local)
