"""`cublas_streams` without a GPU, over STUBS of torch.cuda's streams and events, which note their calls."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import cublas_streams
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

case = partial(tiny_layer.case, ffn_dim=40)


class StubLanes:
    """A STUB of torch.cuda's streams and events: what was asked for, in order."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple] = []
        self.current: object = SimpleNamespace(name="main", wait_event=lambda e: self.log.append(("wait", "main", e)))
        made = iter(range(100))

        def stream(device):
            name = f"s{next(made)}"
            return SimpleNamespace(name=name, wait_event=lambda event: self.log.append(("wait", name, event)))

        def event():
            note = SimpleNamespace()
            note.record = lambda stream: self.log.append(("record", stream.name, note))
            return note

        def set_stream(stream):
            self.current = stream

        monkeypatch.setattr(torch.cuda, "Stream", stream)
        monkeypatch.setattr(torch.cuda, "Event", event)
        monkeypatch.setattr(torch.cuda, "set_stream", set_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        multiply = torch.mm

        def mm(a, b, *, out):
            self.log.append(("mm", self.current.name, tuple(out.shape)))
            return multiply(a, b, out=out)

        monkeypatch.setattr(torch, "mm", mm)


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("count", [1, 3, 16])
def test_streams_forward_agrees_and_every_stream_forks_and_joins(monkeypatch, count):
    made = case(tokens=6)
    weights = Weights(made, "cpu")
    stubs = StubLanes(monkeypatch)
    forward = cublas_streams.streams_forward(made, weights, cublas_streams.Lanes(count, torch.device("cpu")))
    counts = [int(load) for load in draw_routing(made).counts if load]
    with torch.inference_mode():
        forward(activations(made, draw_routing(made), "cpu"))
    log, used = stubs.log, min(count, len(counts))
    assert stubs.current.name == "main"
    assert len(log) == 2 * (1 + 3 * used + len(counts))
    widths = (2 * made.ffn_dim, made.hidden_dim)
    for loop, width in zip((log[: len(log) // 2], log[len(log) // 2 :]), widths):
        assert loop[0][:2] == ("record", "main")
        forked = loop[0][2]
        assert [entry[2] for entry in loop if entry[0] == "mm"] == [(load, width) for load in counts]
        for index in range(used):
            mine = [entry for entry in loop if entry[1] == f"s{index}"]
            kinds = [entry[0] for entry in mine]
            assert kinds == ["wait", *["mm"] * len(counts[index::count]), "record"]
            assert mine[0][2] is forked
            assert ("wait", "main", mine[-1][2]) in loop[loop.index(mine[-1]) :]
        assert {entry[1] for entry in loop} == {"main", *(f"s{index}" for index in range(used))}


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("fields", tiny_layer.VARIED, ids=str)
def test_streams_forward_agrees_with_the_reference(monkeypatch, fields):
    made = case(**fields)
    weights = Weights(made, "cpu")
    StubLanes(monkeypatch)
    forward = cublas_streams.streams_forward(made, weights, cublas_streams.Lanes(4, torch.device("cpu")))
    with torch.inference_mode():
        error, torch_error = tiny_layer.errors(forward, made, weights)
    assert error <= 1.5 * torch_error


def test_streams_check():
    adapter = cublas_streams.CublasStreams()
    check = adapter.check(case())
    assert (check.status is Status.OK) == bool(torch.version.cuda)
    assert torch.__version__.startswith(adapter.version())
    assert adapter.config(case()) == "streams=8"
    assert adapter.config(case(num_experts=64)) == "streams=16"
