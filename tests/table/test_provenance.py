"""What a driver may not tell: clock, UUID, its own version."""

import sys
from types import SimpleNamespace

import pytest

from tritonmoe_bench.experiments.table import provenance


class NvmlError(Exception):
    """What the driver raises that does not tell."""


@pytest.fixture
def driver(monkeypatch):
    """A driver that knows one card and one slice of a card, and tells the clock of the card alone."""

    def by_uuid(uuid):
        if uuid not in ("GPU-1a", "MIG-2b"):
            raise NvmlError("not found")
        return uuid

    def clock(device, kind):
        if device.startswith("MIG"):
            raise NvmlError("not supported")
        return 1980

    made = SimpleNamespace(
        NVMLError=NvmlError, NVML_CLOCK_SM=1, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetClockInfo=clock, nvmlSystemGetDriverVersion=lambda: "580.1",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


@pytest.mark.parametrize(
    ("uuid", "clock"), [("1a", 1980), ("GPU-1a", 1980), ("2b", None), ("MIG-2b", None), ("3c", None), ("", None)]
)
def test_a_clock_that_is_not_told_is_missing(uuid, clock, driver):
    assert provenance.sm_clock_mhz(uuid) == clock


def test_a_driver_that_cannot_be_asked_has_no_version(driver):
    def refuse():
        raise NvmlError("not loaded")

    assert provenance.driver_version() == "580.1"
    driver.nvmlInit = refuse
    assert provenance.driver_version() == ""
    assert provenance.sm_clock_mhz("1a") is None


def test_where_no_driver_is_pytorch_is_not_asked(monkeypatch, tmp_path):
    import torch

    def asked():
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(provenance, "DRIVERS", (tmp_path / "none",))
    assert provenance.environment()["device"] == provenance.INTERPRETER
    (tmp_path / "none").touch()
    with pytest.raises(AssertionError):
        provenance.environment()


def test_a_gpu_without_a_uuid_is_a_gpu(driver, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(provenance, "DRIVERS", (tmp_path,))

    card = SimpleNamespace(name="NVIDIA H200 MIG 1g.18gb", L2_cache_size=1, total_memory=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    told = provenance.environment()
    assert (told["device"], told["device_uuid"]) == ("nvidia-h200-mig-1g-18gb", "")
    assert told["device"] != provenance.INTERPRETER
