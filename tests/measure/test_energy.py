"""Power and energy: what the meter makes of the steps of a counter, and rows without a GPU and with a made-up one."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch

from tritonmoe_bench.experiments.implementation.contract import OK
from tritonmoe_bench.experiments.measure import energy
from tritonmoe_bench.experiments.measure import timing as clock
from tritonmoe_bench.experiments.measure.energy import FLUSHED, Energy, Meter
from tritonmoe_bench.experiments.measure.gate import IncorrectOutput
from tritonmoe_bench.experiments.measure.timing import Timing
from tritonmoe_bench.experiments.table import columns
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.settings import TimingSettings
from tritonmoe_bench.experiments.workload.weights import Weights

STEP_S, WATTS = 0.02, 350.0
CASE = Case("tiny", 4, 2, 64, 32, tokens=8)


class FakeTime:
    """A clock that goes on only while somebody sleeps, so that no busy machine changes what is measured."""

    now, until = 0.0, 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now = min(self.now + seconds, self.until)
        time.sleep(1e-4)  # lets the thread that waits for `now` look


class NvmlError(Exception):
    """What a driver raises that does not tell."""


class FakeNvml:
    """A driver whose counter rises at `WATTS`, in steps of `STEP_S`; the clock falls once the load is on."""

    NVML_CLOCK_SM = 1
    NVMLError = NvmlError

    def __init__(self):
        self.clocks = itertools.chain([1980] * 3, itertools.repeat(1400))

    def nvmlDeviceGetTotalEnergyConsumption(self, device):
        return round(int(energy.time.perf_counter() / STEP_S) * STEP_S * WATTS * 1e3)

    def nvmlDeviceGetClockInfo(self, device, kind):
        return next(self.clocks)

    def nvmlDeviceGetEnforcedPowerLimit(self, device):
        return 700_000


@pytest.fixture(autouse=True)
def fake_time(monkeypatch):
    monkeypatch.setattr(energy, "time", FakeTime())


def load(seconds: float) -> None:
    """Returns when the meter, by its own clock, has looked for so long."""
    energy.time.until = seconds
    while energy.time.now < seconds:
        time.sleep(1e-4)


def metered(seconds: float) -> Meter:
    with Meter(None, FakeNvml()) as meter:
        load(seconds)
    return meter


def test_power_is_taken_between_steps_of_the_counter():
    meter = metered(10.5 * STEP_S)
    assert len(meter.steps) >= 10
    assert meter.power_w() == pytest.approx(WATTS, rel=0.02)
    assert meter.clock_mhz() == 1400


def test_one_late_look_at_the_counter_hardly_moves_the_power():
    steps = [(0.1 * number, round(WATTS * 100 * number)) for number in range(10)]
    late = [*steps[:-1], (steps[-1][0] + 0.09, steps[-1][1])]
    from_ends = (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0]) / 1e3
    power = Meter(None, FakeNvml(), steps=late).power_w()
    assert abs(power - WATTS) < abs(from_ends - WATTS) * 0.8


def test_a_counter_that_hardly_moves_is_no_measurement():
    meter = Meter(None, FakeNvml(), steps=[(0.0, 0)])
    with pytest.raises(ValueError, match="moved 1 times"):
        meter.power_w()


class Layer:
    """An implementation as far as `Energy` looks at it."""

    name, computes_layer, host_sync = "layer", True, ""

    def activations(self, case):
        return "a16"

    def check(self, case):
        return OK

    def build(self, case, weights):
        return lambda x: x

    def config(self, case):
        return ""


class FakeBench:
    """On a GPU that is not there; the reference is the input, which `Layer` returns."""

    def __init__(self, timed=True, sets=1):
        self.timed, self.sets, self.device, self.settings = timed, sets, torch.device("cpu"), TimingSettings()

    def cold_sets(self, case):
        return self.sets

    def weights(self, case, count):
        return [Weights(case, "cpu", index) for index in range(count)]

    def reference(self, case, x, weights, bits):
        return x.float(), 1e-3


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which forwards are three times as fast as they were estimated. Holds the seconds of each run."""
    ran = []

    def time_calls(calls, launch, settings, *, during, verify, verify_again):
        verify(calls[0]())
        ran.append(settings.budget_ms / 3e3)
        with during:
            load(energy.time.now + ran[-1])
        verify_again(calls[0])
        return Timing(200.0, 190.0, 210.0, 1000, "chain")

    monkeypatch.setattr(clock, "time_calls", time_calls)
    monkeypatch.setattr(energy, "open_meter", lambda uuid: Meter(None, FakeNvml()))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="fake"))
    return ran


def test_a_row_a_launch_mode(gpu):
    graph, eager = Energy().measure(Layer(), CASE, ["graph", "eager"], FakeBench())
    for launch, row in (("graph", graph), ("eager", eager)):
        assert (row["launch"], row["status"], row["p50_us"], row["power_limit_w"]) == (launch, "ok", 200.0, 700.0)
        assert row["power_w"] == pytest.approx(WATTS, rel=0.02)
        assert row["energy_mj"] == pytest.approx(row["power_w"] * 0.2)
        identity = {"run_id": "r", "case_hash": CASE.case_hash, "implementation": "layer", "timestamp_utc": "now"}
        columns.validate([identity | row], Energy.columns)


def test_a_run_that_ends_too_soon_is_repeated_with_more_samples(gpu):
    Energy().measure(Layer(), CASE, ["graph"], FakeBench())
    short, long = gpu
    assert short == pytest.approx(energy.BUDGET_MS / 3e3)
    assert long == pytest.approx(energy.BUDGET_MS / 1e3, rel=0.1)


def test_a_wrong_output_is_not_measured(gpu, monkeypatch):
    monkeypatch.setattr(FakeBench, "reference", lambda self, case, x, weights, bits: (x.float() + 1, 1e-3))
    with pytest.raises(IncorrectOutput):
        Energy().measure(Layer(), CASE, ["graph"], FakeBench())


@pytest.mark.parametrize(
    ("bench", "host_sync", "status", "reason"),
    [
        (FakeBench(timed=False), "", "unavailable", "needs an NVIDIA GPU"),
        (FakeBench(sets=0), "", "unsupported", FLUSHED),
        (FakeBench(), "waits for the host", "unsupported", "waits for the host"),
    ],
)
def test_what_cannot_be_measured_says_why(gpu, bench, host_sync, status, reason, monkeypatch):
    monkeypatch.setattr(Layer, "host_sync", host_sync)
    (row,) = Energy().measure(Layer(), CASE, ["graph"], bench)
    assert (row["launch"], row["status"], row["reason"]) == ("graph", status, reason)


def test_without_a_clock_or_a_limit_power_stands(gpu, monkeypatch):
    def refuse(*_):
        raise NvmlError("not supported")

    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetClockInfo", refuse)
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetEnforcedPowerLimit", refuse)
    (row,) = Energy().measure(Layer(), CASE, ["graph"], FakeBench())
    assert row["status"] == "ok"
    assert row["power_w"] == pytest.approx(WATTS, rel=0.02)
    assert row["settled_clock_mhz"] is None
    assert row["power_limit_w"] is None


def test_a_device_that_the_driver_does_not_know_is_named(monkeypatch):
    monkeypatch.setattr(energy, "nvml_device", lambda uuid: None)
    with pytest.raises(ValueError, match="no energy counter for the device MIG-1"):
        energy.open_meter("MIG-1")
