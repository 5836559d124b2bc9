"""Programmatic dependent launch is asked for exactly where there is one."""

import pytest
import torch

from tritonmoe_bench.kernels import pdl
from tritonmoe_bench.kernels.pdl import launch_options


@pytest.fixture(autouse=True)
def asked_anew():
    pdl._supported.cache_clear()
    yield
    pdl._supported.cache_clear()


def test_not_on_a_cpu():
    assert launch_options(torch.device("cpu")) == {"PDL": False}


@pytest.mark.parametrize(
    ("hip", "capability", "options"),
    [
        (None, (8, 0), {"PDL": False}),
        (None, (8, 9), {"PDL": False}),
        (None, (9, 0), {"PDL": True, "launch_pdl": True}),
        (None, (12, 0), {"PDL": True, "launch_pdl": True}),
        ("6.4", (9, 4), {"PDL": False}),
        ("6.4", (12, 0), {"PDL": False}),
    ],
)
def test_by_capability_of_nvidia(hip, capability, options, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch_options(torch.device("cuda", 0)) == options
