"""Power and energy of forwards that run back to back, by the GPU's own counter (NVML).

The counter moves in steps: power is the slope of a line through the points at which it did, while the forwards ran.
Energy of a forward is that power times its latency in the same run.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..implementation.contract import Implementation
from ..table import columns
from ..workload.case import Case
from ..workload.routing import activations, draw_routing
from ..workload.settings import TimingSettings
from .bench import Bench, _bind, _gate
from .timing import Timing, time_calls, weight_sets

BUDGET_MS = 1500.0
"""How long one measurement lasts at least, whatever `timing` says: it has to span many steps of the counter."""
TRIES = 3
"""How often a measurement is repeated with more samples where forwards turn out faster than they were estimated."""
POLL_S = 0.002
MIN_STEPS = 5
"""Fewer give no slope worth the name."""
FLUSHED = "the weights of a forward fit into the L2, and what empties it in between would be measured along"


@dataclass
class Meter:
    """Reads a device's counter in a thread of its own, from `start` to `stop`.

    steps: (time in s, energy in mJ) at which the counter has moved; clocks: SM clock in MHz at each look; span_ms: time
    from `start` to `stop`.
    """

    device: Any
    nvml: Any
    steps: list[tuple[float, int]] = field(default_factory=list)
    clocks: list[int] = field(default_factory=list)
    span_ms: float = 0.0
    _began: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.span_ms = 1e3 * (time.perf_counter() - self._began)
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        last = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device)
        while not self._over.is_set():
            energy = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.device)
            if energy != last:
                self.steps.append((time.perf_counter(), energy))
                last = energy
            self.clocks.append(self.nvml.nvmlDeviceGetClockInfo(self.device, self.nvml.NVML_CLOCK_SM))
            time.sleep(POLL_S)

    def power_w(self) -> float:
        """Mean power in W: the slope through the steps. Raises ValueError if the counter has not moved often enough."""
        if len(self.steps) < MIN_STEPS:
            raise ValueError(f"the energy counter moved {len(self.steps)} times meanwhile: {MIN_STEPS} are needed")
        return statistics.linear_regression(*zip(*self.steps)).slope / 1e3

    def clock_mhz(self) -> float:
        """Median SM clock in MHz of the second half, when it has settled."""
        return statistics.median(self.clocks[len(self.clocks) // 2 :])


def open_meter(device_uuid: str) -> Meter:
    """A meter of that GPU. Raises pynvml.NVMLError where the driver offers none."""
    import pynvml

    pynvml.nvmlInit()
    return Meter(pynvml.nvmlDeviceGetHandleByUUID("GPU-" + device_uuid.removeprefix("GPU-")), pynvml)


def measure_energy(
    implementation: Implementation, case: Case, launches: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """One row a launch mode: power, energy and settled clock, beside the latency of the same forwards."""
    if not bench.timed:
        return [columns.failed("energy", launch, "unavailable", "needs an NVIDIA GPU") for launch in launches]
    routing = draw_routing(case)
    x = activations(case, routing, bench.device)
    active_bytes = routing.active_experts * case.expert_bytes
    count = weight_sets(active_bytes, bench.l2_bytes, case.weight_bytes, bench.settings)
    if not count:
        return [columns.failed("energy", launch, "unsupported", FLUSHED) for launch in launches]
    rows = []
    with torch.inference_mode():
        sets = bench.weights(case, count)
        forwards = [implementation.build(case, weights) for weights in sets]
        verify = None
        if implementation.computes_layer:
            verify = _gate(*bench.reference(case, x, sets[0]))
        calls = [_bind(forward, x) for forward in forwards]
        for launch in launches:
            if launch == "graph" and implementation.host_sync:
                row = columns.failed("energy", launch, "unsupported", implementation.host_sync)
            else:
                row = {"launch": launch, "status": "ok", "reason": ""} | _measured(calls, launch, bench, verify)
            rows.append(row | {"config": implementation.config(case)})
    return rows


def _measured(calls: list, launch: str, bench: Bench, verify) -> dict[str, Any]:
    settings = long_run(bench.settings)
    wanted = settings.budget_ms
    for _ in range(TRIES):
        timing, meter = _metered(calls, launch, settings, bench, verify)
        if meter.span_ms >= 0.9 * wanted:
            break
        settings = replace(settings, budget_ms=settings.budget_ms * wanted / meter.span_ms)
    power = meter.power_w()
    return {
        "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us, "p80_us": timing.p80_us,
        "samples": timing.samples, "power_w": power, "energy_mj": power * timing.p50_us / 1e3,
        "settled_clock_mhz": meter.clock_mhz(),
        "power_limit_w": meter.nvml.nvmlDeviceGetEnforcedPowerLimit(meter.device) / 1e3,
    }  # fmt: skip


def _metered(calls: list, launch: str, settings: TimingSettings, bench: Bench, verify) -> tuple[Timing, Meter]:
    meter = open_meter(str(torch.cuda.get_device_properties(bench.device).uuid))

    def begin(output: object) -> None:
        if verify is not None:
            verify(output)
        meter.start()

    try:
        timing = time_calls(calls, launch, settings, verify=begin)
    finally:
        meter.stop()
    return timing, meter


def long_run(settings: TimingSettings) -> TimingSettings:
    """As many samples as the time budget holds."""
    return replace(settings, samples=10**6, budget_ms=max(settings.budget_ms, BUDGET_MS))
