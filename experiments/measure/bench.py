"""What the measurements share: weights and references of a worker, the start of a measurement, failures as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..implementation.contract import Implementation
from ..table.kind import Kind
from ..table.provenance import INTERPRETER
from ..workload.case import Case
from ..workload.reference import moe_forward, quantize_fp8, relative_error
from ..workload.routing import TORCH_DTYPE, activations, draw_routing
from ..workload.weights import Weights
from .gate import Gate, IncorrectOutput
from .timing import TimingSettings, weight_sets


@dataclass
class Bench:
    """What the cases of one worker share: device, settings, the weights of the current shape, cached references."""

    device: torch.device
    settings: TimingSettings
    reference_folder: Path
    l2_bytes: int = 0
    _sets: dict[int, Weights] = field(default_factory=dict)
    _key: tuple = ()

    @property
    def timed(self) -> bool:
        return self.device.type == "cuda"

    def weights(self, case: Case, count: int) -> list[Weights]:
        """`count` weight sets of the case; sets of an earlier shape, or beyond the count, are dropped."""
        if case.weights_key != self._key:
            self._sets, self._key = {}, case.weights_key
        for index in [index for index in self._sets if index >= count]:
            del self._sets[index]
        for index in range(count):
            kept = self._sets.setdefault(index, Weights(case, self.device, index))
            kept.case = case
        return list(self._sets.values())

    def release(self) -> None:
        """Drops all weights, to give their memory back after a failure."""
        self._sets.clear()

    def cold_sets(self, case: Case) -> int:
        """How many weight sets make a chain of forwards cold; 0 if the L2 has to be flushed before each instead."""
        read_bytes = case.read_bytes(draw_routing(case).active_experts)
        return weight_sets(read_bytes, self.l2_bytes, case.weight_bytes, self.settings) if self.timed else 1

    def reference(
        self, case: Case, x: torch.Tensor, weights: Weights, bits: str, name: str = "x"
    ) -> tuple[torch.Tensor, float]:
        """(float32 output, relative error of PyTorch's own computation) of activations called `name`.

        bits: ``a16`` for its computation in 16 bits, ``a8`` for an emulation that quantises the rows before each GEMM.
        Made once for all workers of a run.
        """
        path = self.reference_folder / f"{case.case_hash}-{self.device.type}-{name}-{bits}.pt"
        if path.exists():
            kept = torch.load(path, map_location=self.device)
            return kept["y"], kept["torch_rel_error"]
        arguments = (x, weights.router(), weights.expert, case.top_k, case.gate, weights.correction_bias())
        parts = weights.parts()
        y = moe_forward(*arguments, parts=parts)
        if bits == "a8":
            own = moe_forward(*arguments, quantize=quantize_fp8, parts=parts)
        else:
            own = moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype], parts=parts)
        error = relative_error(own, y)
        partial = path.with_suffix(".partial")
        torch.save({"y": y.cpu(), "torch_rel_error": error}, partial)
        partial.replace(path)
        return y, error


@dataclass
class Ready:
    """What a measurement of whole forwards starts from.

    x: the case's activations [tokens, hidden_dim]; forwards: one per weight set; flush: whether the L2 has to be
    emptied before each forward; gate: checks their outputs, none for a system whose output is not the layer's.
    """

    x: torch.Tensor
    forwards: list[Callable[[torch.Tensor], torch.Tensor]]
    flush: bool
    gate: Gate | None

    @property
    def checks(self) -> dict[str, Any]:
        """What `time_calls` is given of the gate."""
        return {} if self.gate is None else {"verify": self.gate.check, "verify_again": self.gate.check_again}

    @property
    def calls(self) -> list[Callable[[], object]]:
        return [_bind(forward, self.x) for forward in self.forwards]


def prepare(implementation: Implementation, case: Case, bench: Bench) -> Ready:
    """Builds a system on as many weight sets as a cold chain takes, with the gate for its output."""
    x = activations(case, draw_routing(case), bench.device)
    count = bench.cold_sets(case)
    sets = bench.weights(case, max(count, 1))
    forwards = [implementation.build(case, weights) for weights in sets]
    gate = make_gate(implementation, case, x, sets, bench) if implementation.computes_layer else None
    return Ready(x, forwards, count == 0, gate)


def make_gate(implementation: Implementation, case: Case, x: torch.Tensor, sets: list[Weights], bench: Bench) -> Gate:
    """The gate for outputs on x and the first weight set; call it after `build` and before the first forward."""
    with torch.inference_mode():
        return _gate(case, x, sets, bench, implementation.activations(case))


def _gate(case: Case, x: torch.Tensor, sets: list[Weights], bench: Bench, bits: str) -> Gate:
    reference, torch_error = bench.reference(case, x, sets[0], bits)
    if case.tokens > 1:  # the same tokens in another order cost the same, and need no reference of their own
        other, other_reference = x.roll(1, 0), reference.roll(1, 0)
    else:
        other = x.clone()
        other[:, case.num_experts :].neg_()  # the logits, and so the experts, stay
        other_reference, _ = bench.reference(case, other, sets[0], bits, "other")
    return Gate(x, other, reference, other_reference, torch_error, sets, bits)


def facts(case: Case) -> dict[str, Any]:
    """The columns that follow from the case alone, its realised routing included."""
    routing = draw_routing(case)
    return {
        "active_experts": routing.active_experts,
        "max_expert_load": routing.max_expert_load,
        "min_bytes": case.min_bytes(routing.active_experts),
        "flops": case.flops,
    }


def make_bench(job: dict) -> Bench:
    """Device, settings and folder of references of a job; without a GPU kernels run in Triton's interpreter."""
    cuda = job["environment"]["device"] != INTERPRETER
    if not cuda:
        from ..interpreter import repair

        repair.install()
    return Bench(
        torch.device("cuda" if cuda else "cpu"),
        TimingSettings(**job["timing"]),
        Path(job["reference_folder"]),
        job["environment"]["l2_bytes"],
    )


def case_rows(
    measure: Callable[[Implementation, Case, list[str], Bench], list[dict[str, Any]]],
    kind: Kind, implementation: Implementation, case: Case, modes: list[str], bench: Bench,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of one case, whatever happens: a failure is a status with its reason."""

    def failed(status: str, reason: str) -> list[dict[str, Any]]:
        return [kind.failed(mode, status, reason) for mode in modes]

    if implementation.needs_gpu and not bench.timed:
        return failed("unavailable", "needs an NVIDIA GPU, and this machine has none")
    try:
        check = implementation.answer(case)
        if check.status.value != "ok":
            return failed(check.status.value, check.reason)
        return measure(implementation, case, modes, bench)
    except torch.cuda.OutOfMemoryError as error:
        failure = ("oom", str(error))
    except IncorrectOutput as error:
        failure = ("incorrect", str(error))
    except Exception as error:  # the sweep goes on, and the row says what happened
        failure = ("error", f"{type(error).__name__}: {error}")
    rows = failed(*failure)
    if bench.timed:
        bench.release()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()  # a fault of the device itself ends this process here, and the parent says so
    return rows


def _bind(forward: Callable, x: torch.Tensor) -> Callable[[], object]:
    return lambda: forward(x)
