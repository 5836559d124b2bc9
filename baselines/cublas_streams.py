"""`cublas_streams`: one cuBLAS GEMM per active expert, launched by a loop on the host over several CUDA streams.

This is what FastMoE and FasterMoE do on one GPU (arXiv 2103.13262), in PyTorch: counts to the host, a loop of
`torch.mm` for gate and up, SiLU x up for all rows at once, a loop of `torch.mm` for down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
)

if TYPE_CHECKING:
    import torch

STREAMS = 16
"""As FastMoE has them."""


class CublasStreams(Implementation):
    name = "cublas_streams"
    family = "library"
    source = f"torch.mm in a loop over experts on {STREAMS} CUDA streams"
    host_sync = "the loop over experts runs on the host and waits for the experts' counts"

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def check(self, case: Case) -> Check:
        import torch

        if not torch.version.cuda:
            return unavailable(f"torch {torch.__version__} was built without CUDA: pip install 'torch>=2.11'")
        return OK

    def config(self, case: Case) -> str:
        return f"streams={min(STREAMS, case.num_experts)}"

    def build(self, case: Case, weights: Weights) -> Forward:
        return streams_forward(case, weights, Lanes(STREAMS, weights.device))


class Lanes:
    """Streams that branch off the current one and join it again."""

    def __init__(self, count: int, device: torch.device) -> None:
        import torch

        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)]
        self._forked = torch.cuda.Event()
        self._done = [torch.cuda.Event() for _ in range(count)]

    def run(self, tasks: Iterable[tuple]) -> None:
        """`torch.mm` of each (a, b, out), dealt to the streams in turn.

        No stream starts before what the current stream holds so far, which goes on when all of them are done.
        """
        import torch

        current = torch.cuda.current_stream(self._device)
        self._forked.record(current)
        used = 0
        for index, (a, b, out) in enumerate(tasks):
            stream = self._streams[index % len(self._streams)]
            torch.cuda.set_stream(stream)
            if index < len(self._streams):
                stream.wait_event(self._forked)
                used = index + 1
            torch.mm(a, b, out=out)
        torch.cuda.set_stream(current)
        for stream, done in zip(self._streams[:used], self._done):
            done.record(stream)
            current.wait_event(done)


def streams_forward(case: Case, weights: Weights, lanes: Lanes) -> Forward:

    from .parts.by_expert import Buffers, forward_by_expert
    from .parts.host_ends import HostEnds

    host_ends = HostEnds(case.num_experts, weights.device)
    gate_up = weights.gate_up("nk").transpose(1, 2).unbind()
    down = weights.down("nk").transpose(1, 2).unbind()

    def gemms(ends: torch.Tensor, buffers: Buffers) -> tuple[Callable[[], None], Callable[[], None]]:
        counted = host_ends.wait().tolist()
        spans = [(e, start, end) for e, (start, end) in enumerate(zip([0, *counted], counted)) if end > start]

        def run(rows: torch.Tensor, matrices: Sequence[torch.Tensor], out: torch.Tensor) -> None:
            lanes.run((rows[start:end], matrices[expert], out[start:end]) for expert, start, end in spans)

        return lambda: run(buffers.rows, gate_up, buffers.gate_up), lambda: run(buffers.hidden, down, buffers.out)

    return forward_by_expert(case, weights, gemms, begin=host_ends.copy)
