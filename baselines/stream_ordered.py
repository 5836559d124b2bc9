"""`stream_routed` and `stream_ordered`: the reading of `stream` in the order that every layer of this kind imposes.

`stream` reads at once what a layer may read only when it knows which experts it needs. `stream_routed` reads the same
bytes behind the logits and the top-k of `fast`; `stream_ordered` also reads down's behind gate and up's, expert by
expert, and adds up the experts' outputs where there are several tokens. Neither multiplies a weight. They are no proof
of a bound, as a faster routing would lower them: they say how much of the time beyond `stream` the order costs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unsupported,
)

from .stream import TRIES

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.kernels.stream import StreamTile

GATE_UP_SHARE = 2 / 3
"""Of an expert's weights: two matrices of three of one size."""


class StreamRouted(Implementation):
    """Not a Mixture-of-Experts layer: its output is a sum of words, so no error is asked of it."""

    name = "stream_routed"
    family = "limit"
    source = "kernels/stream_ordered.py, kernels/fast/routing.py"
    computes_layer = False
    ordered: ClassVar[bool] = False

    def __init__(self) -> None:
        self._chosen: dict[str, StreamTile] = {}

    def version(self) -> str:
        return "1"

    def check(self, case: Case) -> Check:
        import torch

        from tritonmoe_bench.kernels.fast.tile_types import JOINED_TOKENS

        if case.tokens > JOINED_TOKENS:
            return unsupported(f"its order is that of the path of fast for up to {JOINED_TOKENS} tokens")
        if self.ordered and torch.version.hip:
            return unsupported("its one grid needs a GPU of NVIDIA's")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        from tritonmoe_bench.experiments.measure.timing import time_calls
        from tritonmoe_bench.experiments.workload.routing import draw_routing
        from tritonmoe_bench.experiments.workload.settings import TimingSettings
        from tritonmoe_bench.kernels.fast.forward import launch_combine
        from tritonmoe_bench.kernels.fast.logits import launch_logits
        from tritonmoe_bench.kernels.fast.routing import launch_top_k
        from tritonmoe_bench.kernels.stream import STREAM_TILES
        from tritonmoe_bench.kernels.stream_ordered import stream_ordered

        flat, router, bias = weights.flat(), weights.router(), weights.correction_bias()
        active = torch.from_numpy(draw_routing(case).counts > 0).nonzero().flatten().to(torch.int32).to(flat.device)
        first = round(flat.shape[1] * GATE_UP_SHARE) if self.ordered else 0
        outputs = torch.zeros(case.slots, case.hidden_dim, dtype=router.dtype, device=flat.device)

        def forward(x: torch.Tensor, tile: StreamTile) -> torch.Tensor:
            arrivals = torch.empty(case.tokens, case.top_k, dtype=torch.int32, device=x.device) if first else None
            logits = launch_logits(x, router)
            _, shares = launch_top_k(logits, case.top_k, case.gate, bias, arrivals=arrivals)
            read = stream_ordered(flat, active, tile, first, None if arrivals is None else arrivals.flatten())
            if first and case.tokens > 1:
                return launch_combine(outputs, shares)
            return read

        if case.case_hash not in self._chosen:
            x = torch.zeros(case.tokens, case.hidden_dim, dtype=router.dtype, device=flat.device)
            settings = TimingSettings(samples=TRIES, min_samples=TRIES)
            times = {tile: time_calls([partial(forward, x, tile)], "graph", settings, flush=True).p50_us
                     for tile in STREAM_TILES}  # fmt: skip
            self._chosen[case.case_hash] = min(times, key=times.__getitem__)
        best = self._chosen[case.case_hash]
        return lambda x: forward(x, best)

    def config(self, case: Case) -> str:
        tile = self._chosen.get(case.case_hash)
        return f"words={tile.words} steps={tile.steps} warps={tile.num_warps}" if tile else ""


class StreamOrdered(StreamRouted):
    """Gate and up's words first, down's as soon as its expert's are read, in one grid."""

    name = "stream_ordered"
    ordered = True
