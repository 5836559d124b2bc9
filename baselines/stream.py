"""`stream`: the measured limit, the time to read the weights of the active experts and the shared one, nothing else."""

from __future__ import annotations

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


class Stream(Implementation):
    """Not a Mixture-of-Experts layer: its output is a sum of words, so no error is asked of it."""

    name = "stream"
    family = "limit"
    source = "kernels/stream.py"
    computes_layer = False
    quants = QUANTS
    facts = tuple(NEEDS)

    def __init__(self) -> None:
        self._chosen: dict[str, str] = {}

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
        best = min(STREAM_TILES, key=lambda tile: quick_us(lambda: stream(flat, active, tile)))
        self._chosen[case.case_hash] = f"words={best.words} steps={best.steps} warps={best.num_warps}"
        return lambda x: stream(flat, active, best)

    def config(self, case: Case) -> str:
        return self._chosen.get(case.case_hash, "")
