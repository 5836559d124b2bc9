"""The adapter of finegrained-fp8 on a stand-in for the package: what it hands on, and that tiles are compiled ahead."""

import sys
from types import ModuleType

import pytest
import torch
from tiny_layer import ON_THE_CPU
from triton.runtime.autotuner import Autotuner

from tritonmoe_bench.baselines import finegrained_fp8
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights


class Tuner(Autotuner):
    """A kernel with a tuner, which notes whether it is compiled or launched."""

    def __init__(self):
        self.log = []

    def run(self, *arguments, grid, warmup, **options):
        self.log.append("launched")

    def warmup(self, *arguments, grid, **options):
        self.log.append("compiled")


@pytest.fixture
def stub(monkeypatch):
    """The tuned kernel of a package whose forward launches it and then computes the layer in PyTorch."""
    package, batched = ModuleType("finegrained_fp8"), ModuleType("finegrained_fp8.fused_batched")
    batched.kernel, batched.other = Tuner(), object()

    def fused(x, experts, scores, gate_up, down, gate_up_scales, down_scales, block):
        batched.kernel[(1,)](x)
        both = unpacked(gate_up, gate_up_scales, block)
        back = unpacked(down, down_scales, block)
        out = torch.zeros_like(x, dtype=torch.float32)
        for token, slot in ((t, j) for t in range(x.shape[0]) for j in range(experts.shape[1])):
            expert = int(experts[token, slot])
            gate, up = (both[expert] @ x[token].float()).chunk(2)
            out[token] += scores[token, slot] * (back[expert] @ (torch.nn.functional.silu(gate) * up))
        return out.to(x.dtype)

    package.moe_fused_batched = fused
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, batched.__name__, batched)
    return batched.kernel


def unpacked(values, scales, block):
    return values.float() * scales.repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)


@ON_THE_CPU
def test_tiles_are_compiled_ahead_and_then_tuned_before_the_forward_is_handed_out(stub):
    case = Case("tiny", 16, 2, 128, 128, tokens=3, quant="fp8_block")
    weights = Weights(case, "cpu")
    x = activations(case, draw_routing(case), "cpu")
    forward = finegrained_fp8.FinegrainedFp8().build(case, weights)
    assert stub.log == ["compiled", "launched"]
    assert stub.do_bench.keywords == finegrained_fp8.TRIAL_MS
    reference = moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate)
    assert relative_error(forward(x), reference) < 0.01
    assert stub.log == ["compiled", "launched", "launched"]


@pytest.mark.parametrize(("tokens", "which"), [(1, "batched"), (8, "batched"), (9, "grouped")])
def test_many_slots_are_sorted_by_expert(tokens, which):
    assert finegrained_fp8.FinegrainedFp8().config(Case("tiny", 16, 2, 128, 128, tokens)) == f"moe_fused_{which}"
