"""The gate asks of a system with 8-bit activations what 8 bits allow, and no more of one with 16."""

import pandas as pd
import pytest
import torch

from tritonmoe_bench.baselines.fast import Fast
from tritonmoe_bench.experiments.measure.bench import Bench, prepare
from tritonmoe_bench.experiments.measure.gate import IncorrectOutput
from tritonmoe_bench.experiments.table.limits import with_limits
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.settings import TimingSettings
from tritonmoe_bench.kernels import fast_moe

CASE = Case("t", 4, 2, 128, 128, 6, quant="fp8_block")


class Eight(Fast):
    """`fast` with 8-bit activations, whatever the machine has units for, which it may tell or not."""

    name = "eight"
    told = "a8"

    def activations(self, case):
        return self.told

    def build(self, case, weights):
        layer = (weights.router(), weights.packed_gate_up(), weights.packed_down(), case.top_k, case.gate)
        return lambda x: fast_moe(x, *layer, activations="a8")


class Quiet(Eight):
    name = "quiet"
    told = "a16"


@pytest.fixture
def bench(tmp_path):
    return Bench(torch.device("cpu"), TimingSettings(), tmp_path)


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="runs kernels on the CPU, in the interpreter")


@needs_no_gpu
def test_eight_bits_are_measured_by_eight_bits(bench):
    ready = prepare(Eight(), CASE, bench)
    error = ready.gate.check(ready.forwards[0](ready.x))
    assert 0.5 * ready.gate.torch_error < error < 1.2 * ready.gate.torch_error
    ready.gate.check_again(lambda: ready.forwards[0](ready.x))


@needs_no_gpu
def test_eight_bits_that_are_not_told_are_incorrect(bench):
    ready = prepare(Quiet(), CASE, bench)
    with pytest.raises(IncorrectOutput, match="2 x PyTorch's own in 16 bits"):
        ready.gate.check(ready.forwards[0](ready.x))


@needs_no_gpu
def test_sixteen_bits_pass_as_such(bench):
    ready = prepare(Fast(), CASE, bench)
    assert ready.gate.check(ready.forwards[0](ready.x)) < 1.5 * ready.gate.torch_error


def test_the_roof_of_a_format_is_that_of_its_units():
    common = {"run_id": "r", "implementation": "stream", "status": "ok", "launch": "graph", "p50_us": 1.0,
              "flops": 8e9, "dtype": "bf16"}  # fmt: skip
    rows = pd.DataFrame([common | {"case_hash": quant, "quant": quant} for quant in ("none", "fp8_block", "int4")])
    limits = with_limits(rows, {"bf16": 800.0, "fp8_block": 1600.0})["limit_us"]
    assert list(limits) == [10.0, 5.0, 10.0]
    assert list(with_limits(rows, {"bf16": 800.0})["limit_us"]) == [10.0, 10.0, 10.0]
