"""`stream`: the measured limit, the time to read the weights of the active experts and the shared one, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import (
    NEEDS,
    OK,
    QUANTS,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
)

if TYPE_CHECKING:
    from tritonmoe_bench.kernels.stream import StreamTile

TRIES = 15
"""Of each tile, before one is chosen."""


class Stream(Implementation):
    """Not a Mixture-of-Experts layer: its output is a sum of words, so no error is asked of it."""

    name = "stream"
    family = "limit"
    # 2: the tile is chosen once for all weight sets, by more tries, each after a flush of the L2. Each set had chosen
    #    for itself, and at few active experts some took a slow one: limits of up to 25 % more.
    revision = 2
    source = "kernels/stream.py"
    computes_layer = False
    quants = QUANTS
    facts = tuple(NEEDS)

    def __init__(self) -> None:
        self._chosen: dict[str, StreamTile] = {}

    def version(self) -> str:
        return "1"

    def check(self, case: Case) -> Check:
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        from tritonmoe_bench.experiments.measure.timing import quick_us
        from tritonmoe_bench.experiments.workload.routing import draw_routing
        from tritonmoe_bench.kernels.stream import STREAM_TILES, stream

        flat = weights.flat()
        read = torch.ones(len(flat), dtype=torch.bool)
        read[: case.num_experts] = torch.from_numpy(draw_routing(case).counts > 0)
        active = read.nonzero().flatten().to(torch.int32).to(weights.device)
        if case.case_hash not in self._chosen:
            self._chosen[case.case_hash] = min(
                STREAM_TILES, key=lambda tile: quick_us(lambda: stream(flat, active, tile), TRIES, flush=True)
            )
        best = self._chosen[case.case_hash]
        return lambda x: stream(flat, active, best)

    def config(self, case: Case) -> str:
        tile = self._chosen.get(case.case_hash)
        return f"words={tile.words} steps={tile.steps} warps={tile.num_warps}" if tile else ""
