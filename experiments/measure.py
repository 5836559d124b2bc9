"""Measures one implementation on one case: checks its output first, then launches, memory and time.

Runs inside a worker process. Returns dictionaries with the columns of experiments/schema.py that it knows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..baselines.contract import Implementation
from ..baselines.reference import moe_forward, relative_error
from . import schema
from .case import Case
from .timing import TimingSettings, time_calls, weight_sets
from .workload import TORCH_DTYPE, Weights, activations, draw_routing

TOLERANCE = 2.0
"""An output may be this many times as far from the float32 reference as PyTorch's own 16-bit computation."""

INTERPRETER_FLOPS = 2e8
"""The largest forward that Triton's interpreter is asked to run."""


class IncorrectOutput(Exception):
    """An output failed the correctness gate."""


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

    def reference(self, case: Case, x: torch.Tensor, weights: Weights) -> tuple[torch.Tensor, float]:
        """(float32 output, relative error of PyTorch's own 16-bit computation); made once for all workers of a run."""
        path = self.reference_folder / f"{case.case_hash}-{self.device.type}.pt"
        if path.exists():
            kept = torch.load(path, map_location=self.device)
            return kept["y"], kept["torch_rel_error"]
        arguments = (x, weights.router(), weights.expert, case.top_k, case.gate, weights.correction_bias())
        y = moe_forward(*arguments)
        error = relative_error(moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype]), y)
        partial = path.with_suffix(".partial")
        torch.save({"y": y.cpu(), "torch_rel_error": error}, partial)
        partial.replace(path)
        return y, error


def facts(case: Case) -> dict[str, Any]:
    """The columns that follow from the case alone, its realised routing included."""
    routing = draw_routing(case)
    return {
        "active_experts": routing.active_experts,
        "max_expert_load": routing.max_expert_load,
        "min_bytes": case.min_bytes(routing.active_experts),
        "flops": case.flops,
    }


def measure_layer(
    implementation: Implementation, case: Case, launches: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """One row a launch mode for the whole forward."""
    routing = draw_routing(case)
    x = activations(case, routing, bench.device)
    count = 1
    if bench.timed:
        active_bytes = routing.active_experts * case.expert_bytes
        count = weight_sets(active_bytes, bench.l2_bytes, case.weight_bytes, bench.settings)
    sets = bench.weights(case, max(count, 1))
    forwards = [implementation.build(case, weights) for weights in sets]
    shared: dict[str, Any] = {}
    verify = None
    with torch.inference_mode():
        if implementation.computes_layer:
            reference, torch_error = bench.reference(case, x, sets[0])
            verify = _gate(reference, torch_error)
            shared["rel_error"] = verify(forwards[0](x))
            shared["torch_rel_error"] = torch_error
        if bench.timed:
            shared["workspace_bytes"] = workspace_bytes(lambda: forwards[0](x))
            shared["kernel_launches"], shared["host_syncs"] = count_launches(lambda: forwards[0](x))
        rows = []
        for launch in launches:
            row = {"launch": launch, "timing_method": "none", "status": "ok", "reason": "", **shared}
            if launch == "graph" and (not bench.timed or implementation.host_sync):
                reason = implementation.host_sync or "a CUDA graph needs an NVIDIA GPU"
                row = {"launch": launch, "timing_method": "none", "status": "unsupported", "reason": reason}
            elif bench.timed:
                calls = [_bind(forward, x) for forward in forwards]
                timing = time_calls(calls, launch, bench.settings, flush=count == 0, verify=verify)
                row |= {
                    "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us,
                    "p80_us": timing.p80_us, "samples": timing.samples,
                    "tokens_per_s": 1e6 * case.tokens / timing.p50_us,
                }  # fmt: skip
            rows.append(row | {"config": implementation.config(case)})
    return rows


def measure_stages(
    implementation: Implementation, case: Case, launches: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """One row a stage and launch mode. A stage that runs for less than the L2 needs to turn over is flushed before."""
    routing = draw_routing(case)
    x = activations(case, routing, bench.device)
    weights = bench.weights(case, 1)[0]
    rows = []
    with torch.inference_mode():
        stages = implementation.stages(case, weights, x)
        if not stages:
            raise ValueError(f"{implementation.name} does not offer its stages one by one")
        for stage, call in stages:
            for launch in launches:
                row: dict[str, Any] = {
                    "stage": stage,
                    "launch": launch,
                    "timing_method": "none",
                    "status": "ok",
                    "reason": "",
                }
                if launch == "graph" and implementation.host_sync:
                    row |= {"status": "unsupported", "reason": implementation.host_sync}
                elif bench.timed:
                    timing = time_calls([call], launch, bench.settings, flush=stage != "expert_ffn")
                    row |= {
                        "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us,
                        "p80_us": timing.p80_us, "samples": timing.samples,
                    }  # fmt: skip
                else:
                    call()
                rows.append(row | {"config": implementation.config(case)})
    return rows


def measure_traffic(
    implementation: Implementation, case: Case, methods: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """Rows of counted bytes by each method."""
    from .traffic import traffic_rows

    rows = []
    for method in methods:
        if method == "interpreter" and case.flops > INTERPRETER_FLOPS:
            rows.append(schema.failed("traffic", method, "unsupported", "too large for Triton's interpreter"))
        else:
            rows += traffic_rows(case, implementation.name, method)
    return [{"config": implementation.config(case)} | row for row in rows]


def workspace_bytes(call: Callable[[], object]) -> int:
    """Device memory that one forward takes beyond what lives before it, output included, in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def count_launches(call: Callable[[], object]) -> tuple[int, int]:
    """(kernels that one forward runs, memory copies and fills left out; times that the host waits for the GPU)."""
    call()
    torch.cuda.synchronize()
    kernels, waits = _profiled(call)
    return kernels, waits - _waits_of_profiling()


@functools.cache
def _waits_of_profiling() -> int:
    """Waits that the profiler itself, and the one at the end of the region, put into every count."""
    return _profiled(lambda: None)[1]


def _profiled(call: Callable[[], object]) -> tuple[int, int]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    names = [(event.device_type == torch.autograd.DeviceType.CUDA, event.name) for event in profiler.events() or []]
    kernels = sum(on_gpu and not name.startswith(("Memcpy", "Memset", "Activity Buffer")) for on_gpu, name in names)
    waiting = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
    return kernels, sum(not on_gpu and name in waiting for on_gpu, name in names)


def _gate(reference: torch.Tensor, torch_error: float) -> Callable[[object], float]:
    allowed = TOLERANCE * torch_error

    def verify(y: object) -> float:
        if not isinstance(y, torch.Tensor) or y.shape != reference.shape:
            raise IncorrectOutput(f"output has shape {tuple(getattr(y, 'shape', ()))}, not {tuple(reference.shape)}")
        error = relative_error(y, reference)
        if not math.isfinite(error) or error > allowed:
            raise IncorrectOutput(
                f"relative error {error:.3g} against the float32 reference; "
                f"allowed is {allowed:.3g}, {TOLERANCE:g} x PyTorch's own in 16 bits"
            )
        return error

    return verify


def _bind(forward: Callable, x: torch.Tensor) -> Callable[[], object]:
    return lambda: forward(x)
