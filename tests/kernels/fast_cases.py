"""Tiles, routings and observers that the tests of `fast` share."""

from __future__ import annotations

import torch

from tritonmoe_bench.kernels.fast.blocks import Blocks
from tritonmoe_bench.kernels.fast.tile_types import (
    HEIGHTS,
    FastTile,
    FastTiles,
    FewTile,
    FewTiles,
    JoinedTile,
    JoinedTiles,
)
from tritonmoe_bench.kernels.paper.schedule import max_blocks
from tritonmoe_bench.kernels.paper.tiles import GROUP_M

SMALL_FEW = FewTiles(FewTile(8, 64, 4), FewTile(16, 32, 4))
"""Output-centric, with so few columns and steps that small layers have several of both."""

SMALL_JOINED = JoinedTiles(JoinedTile(32, 32, 3), JoinedTile(64, 32, 2))
"""Of the joined path, as narrow."""


def make_tiles(
    block_m: int, swap: bool = False, small_swap: bool | None = None, bulk: bool = False, dynamic: bool = True
) -> FastTiles:
    """Tiles so narrow that small layers have several columns and steps; small_swap: as swap, if None."""
    small_swap = swap if small_swap is None else small_swap
    return FastTiles(
        block_m,
        FastTile(64, 64, 4, 2, 64 if bulk else 32, 3, swap, small_swap, bulk),
        FastTile(64, 32, 4, 3, 32 if bulk else 64, 2, swap, small_swap, bulk),
        dynamic,
    )


def needs_bulk_engine(tiles: FastTiles) -> bool:
    """Whether this GPU cannot run these tiles, because bulk copies need compute capability 9."""
    bulk = tiles.gate_up.bulk or tiles.down.bulk
    return bulk and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)


def boundary_loads(block_m: int) -> list[int]:
    """Rows of each expert, so that blocks meet both sides of every height up to the highest block_m, and of the last
    one of a lower; some experts are empty."""
    heights = [height for height in HEIGHTS if height <= block_m]
    both_sides = [rows for low, high in zip([0, *heights], heights) for rows in (low + 1, high)]
    return [0, *(both_sides if block_m == HEIGHTS[-1] else both_sides[-2:]), 0, block_m + 1, 0]


def served_by(rows: int, tiles: FastTiles) -> int:
    """The height that a block of so many rows must get."""
    # 16 and 32 rows are below the least height of the matrix units' left operand: tiles of 32 rows, and tails as low,
    # are there only where the weights are the left one.
    swapped_only = set() if tiles.gate_up.swap else {32, 48, 96, 144, 160}
    highest = tiles.block_m
    if tiles.block_m in swapped_only - {32}:
        highest = {48: 64, 96: 128}.get(tiles.block_m, 192)
    if not tiles.dynamic:
        return highest
    left_out = swapped_only | {48, 96}  # they are below no other
    offered = [h for h in HEIGHTS if h <= highest and (h not in left_out or h == highest)]
    return min(height for height in offered if height >= rows)


def shuffled_experts(loads: list[int], seed: int = 0) -> torch.Tensor:
    """int64 [tokens, 1]: the expert of each token, loads[e] times e, in no order."""
    expert = torch.repeat_interleave(torch.arange(len(loads)), torch.tensor(loads))
    return expert[torch.randperm(len(expert), generator=torch.Generator().manual_seed(seed))].unsqueeze(1)


def one_expert_each(loads: list[int]) -> torch.Tensor:
    """Logits float32 [tokens, experts] that send loads[e] tokens to expert e, in no order."""
    return torch.nn.functional.one_hot(shuffled_experts(loads)[:, 0], len(loads)) * 4.0


def logits_that_choose(experts: torch.Tensor, num_experts: int) -> torch.Tensor:
    """float32 [tokens, num_experts] whose top-k are `experts` [tokens, top_k], in that order."""
    falling = torch.arange(experts.shape[1], 0, -1).float().expand(experts.shape)
    return torch.zeros(experts.shape[0], num_experts).scatter(1, experts, falling)


def list_blocks(experts: torch.Tensor, num_experts: int, block_m: int) -> Blocks:
    """What the routing must make of experts [tokens, top_k], written down plainly; the weights are all 1."""
    slots = experts.cpu().flatten().long()
    table = torch.zeros(5, max_blocks(len(slots), num_experts, block_m), dtype=torch.int32)
    row = 0
    for expert, count in enumerate(torch.bincount(slots, minlength=num_experts).tolist()):
        first, own = min(row, row // block_m + expert), -(-count // block_m)
        assert not table[:, first:].any()
        for number in range(own):
            group = number // GROUP_M * GROUP_M
            start = number * -(-count // own)
            rows = min(count - start, -(-count // own))
            column = expert, row + start, rows, first + group, min(own - group, GROUP_M)
            table[:, first + number] = torch.tensor(column, dtype=torch.int32)
        row += count
    device = experts.device
    weights = torch.ones(experts.shape, dtype=torch.float32, device=device)
    return Blocks(weights, slots.argsort(stable=True).int().to(device), table.to(device))


class Spy:
    """A kernel that writes its name down when it is launched."""

    def __init__(self, kernel, names: list[str]):
        self.kernel, self.names = kernel, names

    def __getitem__(self, grid):
        self.names.append(self.kernel.fn.__name__)
        return self.kernel[grid]
