"""The correctness gate against systems that look right once: each gets `incorrect`, and a sound one gets `ok`."""

import pytest
import torch

from tritonmoe_bench.experiments.implementation.contract import OK, Implementation
from tritonmoe_bench.experiments.measure.bench import Bench, case_rows, prepare
from tritonmoe_bench.experiments.measure.gate import IncorrectOutput
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward
from tritonmoe_bench.experiments.workload.settings import TimingSettings
from tritonmoe_bench.experiments.workload.weights import Weights

CASES = [Case("tiny", 8, 2, 128, 256, tokens=tokens) for tokens in (1, 5)]


class Sound(Implementation):
    """The layer by PyTorch, on a stacked tensor of gate and up as a kernel would read it."""

    name, family, source, needs_gpu = "sound", "made-up", "tests", False

    def version(self):
        return "1"

    def check(self, case):
        return OK

    def build(self, case, weights):
        gate_up, down = weights.gate_up(), weights.down()

        def forward(x):
            def expert(index):
                return (*gate_up[index].chunk(2), down[index])

            return moe_forward(x, weights.router(), expert, case.top_k, case.gate, None, x.dtype)

        return self.spoilt(forward, weights)

    def spoilt(self, forward, weights):
        return forward


class Remembers(Sound):
    def spoilt(self, forward, weights):
        kept = []

        def remember(x):
            kept.append(kept[0] if kept else forward(x))
            return kept[0]

        return remember


class ZerosLater(Sound):
    def spoilt(self, forward, weights):
        calls = []

        def later(x):
            calls.append(1)
            return forward(x) if len(calls) < 2 else torch.zeros_like(x)

        return later


class OverwritesX(Sound):
    def spoilt(self, forward, weights):
        def overwrite(x):
            y = forward(x)
            x.copy_(y)
            return y

        return overwrite


class OverwritesWeights(Sound):
    def spoilt(self, forward, weights):
        def overwrite(x):
            y = forward(x)
            weights.gate_up()[3, 5, 7].fill_(1.0)
            return y

        return overwrite


class Float32(Sound):
    def spoilt(self, forward, weights):
        return lambda x: forward(x).float()


class Flat(Sound):
    def spoilt(self, forward, weights):
        return lambda x: forward(x).view(-1)


class NoTensor(Sound):
    def spoilt(self, forward, weights):
        return lambda x: forward(x).tolist()


FAULTS = {
    Remembers: "after other runs, on other activations: relative error",
    ZerosLater: "after other runs, on other activations: relative error 1 ",
    OverwritesX: "the forward changed x",
    OverwritesWeights: "the forward changed the weights",
    Float32: "output is torch.float32 on cpu: it must be as x, torch.bfloat16 on cpu",
    Flat: "output has shape (",
    NoTensor: "output has shape (), not (",
}


@pytest.fixture
def bench(tmp_path):
    return Bench(torch.device("cpu"), TimingSettings(), tmp_path)


def rows(system, case, bench):
    return case_rows(Layer().measure, Layer(), system, case, ["eager"], bench)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.tokens} tokens")
@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_right_once_is_incorrect(kind, case, bench):
    ((row),) = rows(kind(), case, bench)
    assert row["status"] == "incorrect", row
    assert FAULTS[kind] in row["reason"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.tokens} tokens")
def test_a_sound_system_passes_and_leaves_everything_as_it_was(case, bench):
    ((row),) = rows(Sound(), case, bench)
    assert row["status"] == "ok", row
    assert 0 < row["rel_error"] <= 2 * row["torch_rel_error"]
    ready = prepare(Sound(), case, bench)
    before = ready.x.clone()
    ready.gate.check_again(ready.calls[0])
    assert torch.equal(ready.x, before)


def test_other_activations_are_other_and_cost_the_same(bench):
    for case in CASES:
        gate = prepare(Sound(), case, bench).gate
        logits = slice(0, case.num_experts)
        assert not torch.equal(gate._x, gate._other)
        assert sorted(map(tuple, gate._other[:, logits].tolist())) == sorted(map(tuple, gate._x[:, logits].tolist()))


def test_x_is_restored_when_the_second_check_fails(bench):
    ready = prepare(Sound(), CASES[1], bench)
    before = ready.x.clone()
    with pytest.raises(IncorrectOutput, match="after other runs"):
        ready.gate.check_again(lambda: before.clone())
    assert torch.equal(ready.x, before)


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_a_checksum_sees_every_tensor_that_was_made(quant):
    weights = Weights(Case("tiny", 8, 2, 128, 256, tokens=1, quant=quant), "cpu")
    made = weights.gate_up() if quant == "none" else weights.packed_gate_up().values
    before = weights.checksums()
    assert weights.checksums() == before
    made.view(-1)[3] += 1
    assert weights.checksums() != before


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("launch", ["graph", "eager"])
@pytest.mark.parametrize("kind", [Sound, Remembers, OverwritesX, OverwritesWeights])
def test_what_was_timed_is_what_is_checked(kind, launch, tmp_path):
    bench = Bench(torch.device("cuda"), TimingSettings(samples=4, min_samples=2), tmp_path, 1)
    system = OnGpu.of(kind)
    ((row),) = case_rows(Layer().measure, Layer(), system, CASES[1], [launch], bench)
    assert row["status"] == ("ok" if kind is Sound else "incorrect"), row


class OnGpu(Sound):
    """The layer without anything that a CUDA graph cannot hold: every expert computes every token."""

    @classmethod
    def of(cls, kind):
        return type(kind.__name__, (cls,), {"spoilt": kind.spoilt})()

    def build(self, case, weights):
        router, gate_up, down = weights.router(), weights.gate_up(), weights.down()

        def forward(x):
            scores = torch.softmax((x @ router.T).float(), -1)
            top = scores.topk(case.top_k, -1)
            share = torch.zeros_like(scores).scatter_(-1, top.indices, top.values).to(x.dtype)
            gate, up = torch.einsum("th,efh->etf", x, gate_up).chunk(2, -1)
            y = torch.einsum("etf,ehf->eth", torch.nn.functional.silu(gate) * up, down)
            return torch.einsum("te,eth->th", share, y)

        return self.spoilt(forward, weights)
