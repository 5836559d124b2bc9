"""`stream`: the measured limit, the time to read the weights of the active experts and the shared one, nothing else."""

from __future__ import annotations

import functools
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
    import torch

    from tritonmoe_bench.kernels.stream import StreamTile

SAMPLES = 5
"""Of each tile, before one is chosen."""
REPLAY_US = 1000.0
"""Least length of one of them."""
SMALL = 1 << 27
"""Bytes of a reading below which revision 2 could take a slow tile, with room to spare."""


class Stream(Implementation):
    """Not a Mixture-of-Experts layer: its output is a sum of words, so no error is asked of it."""

    name = "stream"
    family = "limit"
    # 2: the tile is chosen once for all weight sets, by more tries, each after a flush of the L2. Each set had chosen
    #    for itself, and at few active experts some took a slow one: limits of up to 25 % more.
    # 3: by reads in one CUDA graph, as most are timed, and not one by one: several of the least readings had a slow
    #    tile (21.7 us where four times the tokens take 18.1, int4 in quant.csv of fd09bdb). By hand, of all rows none
    #    above 50 MB stands out from those of about as many bytes, so revision 2 stands for them.
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

    def revision_of(self, case: Case) -> int:
        from tritonmoe_bench.experiments.workload.routing import draw_routing

        return 3 if case.read_bytes(draw_routing(case).active_experts) < SMALL else super().revision_of(case)

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        from tritonmoe_bench.experiments.workload.routing import draw_routing
        from tritonmoe_bench.kernels.stream import stream

        flat = weights.flat()
        read = torch.ones(len(flat), dtype=torch.bool)
        read[: case.num_experts] = torch.from_numpy(draw_routing(case).counts > 0)
        active = read.nonzero().flatten().to(torch.int32).to(weights.device)
        if case.case_hash not in self._chosen:
            self._chosen[case.case_hash] = fastest_tile(flat, len(active))
        best = self._chosen[case.case_hash]
        return lambda x: stream(flat, active, best)

    def config(self, case: Case) -> str:
        tile = self._chosen.get(case.case_hash)
        return f"words={tile.words} steps={tile.steps} warps={tile.num_warps}" if tile else ""


def fastest_tile(flat: torch.Tensor, count: int) -> StreamTile:
    """The tile that reads `count` rows of `flat` in the least time, cold and in a CUDA graph.

    flat: int32 [rows, words]. Each read of the graph has rows of its own.
    """
    import torch

    from tritonmoe_bench.experiments.measure.timing import time_calls, weight_sets
    from tritonmoe_bench.experiments.workload.settings import TimingSettings
    from tritonmoe_bench.kernels.stream import STREAM_TILES, stream

    settings = TimingSettings(samples=SAMPLES, min_samples=SAMPLES, min_replay_us=REPLAY_US)
    l2_bytes = torch.cuda.get_device_properties(flat.device).L2_cache_size
    row_bytes = flat.shape[1] * flat.element_size()
    reads = weight_sets(count * row_bytes, l2_bytes, 0, settings, most=len(flat) // count)
    rows = torch.arange(max(reads, 1) * count, dtype=torch.int32, device=flat.device).split(count)

    def latency_us(tile: StreamTile) -> float:
        calls = [functools.partial(stream, flat, of_read, tile) for of_read in rows]
        return time_calls(calls, "graph", settings, flush=reads == 0).p50_us

    return min(STREAM_TILES, key=latency_us)
