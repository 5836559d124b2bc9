"""`energy`: power and energy of forwards that run back to back, by the GPU's own counter (NVML).

The counter moves in steps: power is the slope of a line through the points at which it did, while the forwards ran.
Energy of a forward is that power times its latency in the same run.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..implementation.contract import Implementation
from ..table import columns
from ..table.columns import Column
from ..table.provenance import nvml_device
from ..workload.case import Case
from ..workload.settings import TimingSettings
from .measurement import Measurement, Rows, by_point

if TYPE_CHECKING:
    from .bench import Bench, Ready
    from .timing import Timing

BUDGET_MS = 1500.0
"""How long one measurement lasts at least, whatever `timing` says: it has to span many steps of the counter."""
TRIES = 3
"""How often a measurement is repeated with more samples where forwards turn out faster than they were estimated."""
POLL_S = 0.002
MIN_STEPS = 5
"""Fewer give no slope worth the name."""
FLUSHED = "the weights of a forward fit into the L2, and what empties it in between would be measured along"


class Energy(Measurement):
    """results/<device>/energy.csv: one row per case, system and launch mode."""

    kind = "energy"
    depends = ("workload", "latency", "energy")
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION, columns.LAUNCH, columns.TIMING_METHOD, *columns.STATUS,
        *columns.LATENCY,
        Column("power_w", float, "Mean power while forwards ran back to back, in W.", positive=True),
        Column("energy_mj", float, "Energy of one forward, in mJ: power_w times p50_us.", positive=True),
        Column("settled_clock_mhz", float, "Median SM clock of the second half of that load, in MHz.", positive=True),
        Column("power_limit_w", float, "Power limit of the card, in W.", positive=True),
        columns.ACTIVE_EXPERTS, columns.MAX_EXPERT_LOAD, columns.MIN_BYTES, columns.FLOPS, *columns.ENVIRONMENT,
    )  # fmt: skip

    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """One row per launch mode: power, energy and settled clock, beside the latency of the same forwards."""
        if not bench.timed:
            return [self.failed(launch, "unavailable", "needs an NVIDIA GPU") for launch in modes]
        if not bench.cold_sets(case):
            return [self.failed(launch, "unsupported", FLUSHED) for launch in modes]
        return measure_energy(implementation, case, modes, bench)

    def seconds(self, results: int, points: int, systems: int, modes: Sequence[str]) -> float:
        """1 s more per result: `BUDGET_MS`, and what decides how many forwards that is."""
        return super().seconds(results, points, systems, modes) + 1.0 * results

    def closing_table(self, rows: pd.DataFrame) -> str:
        timed = rows[rows["p50_us"].notna()] if len(rows) else rows
        if timed.empty:
            return ""
        best = timed.sort_values("p50_us").drop_duplicates(["case_hash", "implementation"])
        cells = best.assign(cell=best.apply(_cell, axis=1))
        table = by_point(cells, "cell").fillna("-")
        return f"{table.to_string()}\nfaster launch mode: energy of one forward, mean power, SM clock that settled"


def _cell(row: pd.Series) -> str:
    clock = f" {row['settled_clock_mhz']:.0f} MHz" if pd.notna(row["settled_clock_mhz"]) else ""
    return f"{row['energy_mj']:.0f} mJ {row['power_w']:.0f} W{clock}"


@dataclass
class Meter:
    """Reads a device's counter in a thread of its own, as long as it is entered.

    steps: (time in s, energy in mJ) at which the counter has moved; clocks: SM clock in MHz at each look, as long as
    the driver tells it; span_ms: time between entry and exit.
    """

    device: Any
    nvml: Any
    steps: list[tuple[float, int]] = field(default_factory=list)
    clocks: list[int] = field(default_factory=list)
    span_ms: float = 0.0
    _began: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
            with contextlib.suppress(self.nvml.NVMLError):
                self.clocks.append(self.nvml.nvmlDeviceGetClockInfo(self.device, self.nvml.NVML_CLOCK_SM))
            time.sleep(POLL_S)

    def power_w(self) -> float:
        """Mean power in W: the slope through the steps. Raises ValueError if the counter has not moved often enough."""
        if len(self.steps) < MIN_STEPS:
            raise ValueError(f"the energy counter moved {len(self.steps)} times meanwhile: {MIN_STEPS} are needed")
        return statistics.linear_regression(*zip(*self.steps)).slope / 1e3

    def clock_mhz(self) -> float | None:
        """Median SM clock in MHz of the second half, when it has settled; None where the driver does not tell it."""
        return statistics.median(self.clocks[len(self.clocks) // 2 :]) if self.clocks else None

    def power_limit_w(self) -> float | None:
        """The card's power limit in W; None where the driver does not tell it."""
        with contextlib.suppress(self.nvml.NVMLError):
            return self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.device) / 1e3
        return None


def open_meter(device_uuid: str) -> Meter:
    """A meter of that GPU. Raises ValueError where the driver does not know it."""
    import pynvml

    device = nvml_device(device_uuid)
    if device is None:
        raise ValueError(f"the driver has no energy counter for the device {device_uuid or 'without a UUID'}")
    return Meter(device, pynvml)


def measure_energy(implementation: Implementation, case: Case, launches: list[str], bench: Bench) -> Rows:
    import torch

    from .bench import prepare

    rows: Rows = []
    ready = prepare(implementation, case, bench)
    with torch.inference_mode():
        for launch in launches:
            row: dict[str, Any]
            if launch == "graph" and implementation.host_sync:
                row = Energy().failed(launch, "unsupported", implementation.host_sync)
            else:
                row = {"launch": launch, "status": "ok", "reason": ""} | _measured(ready, launch, bench)
            rows.append(row | {"config": implementation.config(case)})
    return rows


def _measured(ready: Ready, launch: str, bench: Bench) -> dict[str, Any]:
    settings = long_run(bench.settings)
    wanted = settings.budget_ms
    for _ in range(TRIES):
        timing, meter = _metered(ready, launch, settings, bench)
        if meter.span_ms >= 0.9 * wanted:
            break
        settings = replace(settings, budget_ms=settings.budget_ms * wanted / meter.span_ms)
    power = meter.power_w()
    return {
        "timing_method": timing.method, "p50_us": timing.p50_us, "p20_us": timing.p20_us, "p80_us": timing.p80_us,
        "samples": timing.samples, "power_w": power, "energy_mj": power * timing.p50_us / 1e3,
        "settled_clock_mhz": meter.clock_mhz(), "power_limit_w": meter.power_limit_w(),
    }  # fmt: skip


def _metered(ready: Ready, launch: str, settings: TimingSettings, bench: Bench) -> tuple[Timing, Meter]:
    import torch

    from .timing import time_calls

    meter = open_meter(str(torch.cuda.get_device_properties(bench.device).uuid))
    return time_calls(ready.calls, launch, settings, during=meter, **ready.checks), meter


def long_run(settings: TimingSettings) -> TimingSettings:
    """As many samples as the time budget holds."""
    return replace(settings, samples=10**6, budget_ms=max(settings.budget_ms, BUDGET_MS))
