"""`fast_tiled` as the harness runs it."""

import pytest
import torch

from tritonmoe_bench.baselines.fast_tiled import FastTiled
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels.fast import forward
from tritonmoe_bench.kernels.fast.tiled import is_tiled

CASE = Case("tiny", 8, 2, 128, 64, tokens=5, dtype="fp16")


def test_it_runs_over_tiles_and_gives_the_layer(device, monkeypatch):
    seen = []
    check = forward.check_arguments
    monkeypatch.setattr(forward, "check_arguments", lambda *given: seen.append(given[2]) or check(*given))
    weights, x = Weights(CASE, device), activations(CASE, draw_routing(CASE), device)
    y = FastTiled().build(CASE, weights)(x)
    exact = moe_forward(x, weights.router(), weights.expert, CASE.top_k, CASE.gate, None, torch.float32)
    assert relative_error(y, exact) < 2e-3
    (experts,) = seen
    assert is_tiled(experts.gate_up)
    assert is_tiled(experts.down)


@pytest.mark.parametrize("sizes", [(96, 64), (128, 96)], ids=str)
def test_what_is_no_whole_tiles_has_no_row(sizes):
    answer = FastTiled().answer(Case("odd", 8, 2, *sizes, tokens=5))
    assert answer.status.name == "UNSUPPORTED"
    assert "whole tiles of 64" in answer.reason
