"""Programmatic dependent launch is asked for exactly where there is one, and kernels keep the rules it comes with."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tritonmoe_bench.kernels import pdl
from tritonmoe_bench.kernels.pdl import launch_options
from tritonmoe_bench.kernels.target import target_of

KERNELS = {
    function.name: function
    for path in sorted((Path(pdl.__file__).parent / "fast").glob("*.py"))
    for function in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(function, ast.FunctionDef) and function.name.endswith("_kernel")
}
LAUNCHED_FROM = {
    ast.unparse(call.args[0])
    for path in Path(pdl.__file__).parent.rglob("*.py")
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(call, ast.Call)
    and ast.unparse(call.func) == "launch"
    and any(word.arg is None and "launch_options" in ast.unparse(word.value) for word in call.keywords)
}
"""Kernels that are launched with `launch_options`."""
ARITHMETIC = {
    "tl.cdiv", "tl.program_id", "tl.arange", "tl.static_assert", "tl.zeros", "tl.range", "tl.static_range", "tl.sum",
    "tl.sigmoid", "min", "owned",
}  # fmt: skip
EARLY = {
    "_down_kernel": {"_locate"}, "_down_fp8_kernel": {"_locate"}, "_down_w4_kernel": {"_locate"},
    "_few_down_kernel": {"_few_step", "_few_bias"}, "_few_down_w4_kernel": {"_few_down_tile"},
    "_append_shared_kernel": {"tl.load"}, "_top_k_kernel": {"_lanes", "tl.load"},
}  # fmt: skip
"""Calls that read before the wait what is older than the kernel before: what the routing wrote, two kernels earlier,
x, which the router has read, weights and biases."""
LOADED_EARLY = {"_top_k_kernel": {"bias", "router_bias"}, "_append_shared_kernel": {"gate", "x"}}
"""What a kernel loads of it in its own body."""


@pytest.fixture(autouse=True)
def asked_anew():
    target_of.cache_clear()
    yield
    target_of.cache_clear()


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
    properties = SimpleNamespace(shared_memory_per_block=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch_options(torch.device("cuda", 0)) == options


def test_every_kernel_of_fast_is_launched_so():
    assert set(KERNELS) == LAUNCHED_FROM


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_waits_before_it_touches_memory_and_then_releases(name):
    """Every program waits, whatever its work: what comes after the next kernel relies on all of this one being over."""
    statements = [ast.unparse(statement) for statement in KERNELS[name].body]
    assert statements.count("wait_for_previous(PDL)") == 1
    assert statements.count("release_next(PDL)") == 1
    wait = statements.index("wait_for_previous(PDL)")
    assert statements[wait + 1] == "release_next(PDL)"
    early = {
        ast.unparse(node.func)
        for statement in KERNELS[name].body[:wait]
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Attribute) and node.func.attr == "to")
    }
    assert early <= ARITHMETIC | EARLY.get(name, set())
    read = [
        ast.unparse(node.args[0]).split()[0]
        for statement in KERNELS[name].body[:wait] for node in ast.walk(statement)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load"
    ]  # fmt: skip
    assert set(read) <= LOADED_EARLY.get(name, set())
    assert not any(isinstance(node, ast.Return) for node in ast.walk(KERNELS[name]))
