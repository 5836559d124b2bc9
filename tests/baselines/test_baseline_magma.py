"""`magma_vbatched` without a GPU: the adapter over a STUB of the compiled GEMM, and the tool that compiles it and
FlashInfer's kernel over a STUB of nvcc."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import flashinfer_mono, magma_vbatched
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.weights import Weights

BUILD = Path(__file__).resolve().parents[2] / "baselines" / "builds" / "checkouts"
case = partial(tiny_layer.case, ffn_dim=40)


def array(address: int, count: int, kind: type) -> list[int]:
    return list((kind * count).from_address(address))


def matrix(address: int, rows: int, columns: int) -> torch.Tensor:
    values = np.ctypeslib.as_array((ctypes.c_float * (rows * columns)).from_address(address))
    return torch.from_numpy(values).view(rows, columns)


class StubLibrary:
    """A STUB of sgemm_vbatched.so on memory of the CPU, as sgemm_vbatched.cu describes it."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.calls = status, []
        integer, pointer = ctypes.c_int, ctypes.c_void_p
        prototype = ctypes.CFUNCTYPE(integer, *[integer] * 3, *[pointer] * 6, integer, pointer)
        self.moe_magma_sgemm_vbatched = prototype(self._gemm)

    def _gemm(self, n_max, most, k_max, n, rows, k, weights, inward, out, count, stream) -> int:
        sizes = [array(address, count, ctypes.c_int32) for address in (n, rows, k)]
        places = [array(address, count, ctypes.c_int64) for address in (weights, inward, out)]
        self.calls.append((n_max, most, k_max, count))
        for width, height, depth, left, right, made in zip(*sizes, *places):
            assert (width, depth) == (n_max, k_max)
            assert height <= most
            if height:
                matrix(made, height, width).copy_(matrix(right, height, depth) @ matrix(left, width, depth).T)
        return self.status


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """No .peers/magma, and no answer kept from another test."""
    monkeypatch.setattr(magma_vbatched, "FOLDER", tmp_path / "magma")
    magma_vbatched._problem.cache_clear()
    yield
    magma_vbatched._problem.cache_clear()


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("fields", tiny_layer.VARIED, ids=str)
def test_the_layer_over_the_stub_is_the_reference(monkeypatch, fields):
    point, stub = case(**fields), magma_vbatched.declared(StubLibrary())
    monkeypatch.setattr(magma_vbatched, "load", lambda path: stub)
    weights = Weights(point, "cpu")
    forward = magma_vbatched.MagmaVbatched().build(point, weights)
    stub.calls.clear()
    with torch.inference_mode():
        error, torch_error = tiny_layer.errors(forward, point, weights)
    assert error <= torch_error  # all is float32 but the router's logits and the last rounding
    shapes = (2 * point.ffn_dim, point.hidden_dim), (point.hidden_dim, point.ffn_dim)
    assert stub.calls == [(n, point.tokens, k, point.num_experts) for n, k in shapes]


def test_a_cuda_error_is_named(monkeypatch):
    stub = magma_vbatched.declared(StubLibrary(status=700))
    monkeypatch.setattr(magma_vbatched, "load", lambda path: stub)
    with pytest.raises(RuntimeError, match="CUDA error 700"):
        magma_vbatched.MagmaVbatched().build(case(), Weights(case(), "cpu"))


def test_the_row_says_how_to_make_it_and_which_gpu(monkeypatch):
    adapter = magma_vbatched.MagmaVbatched()
    assert "kernels.py magma" in adapter.check(case()).reason
    assert adapter.version() == ""
    magma_vbatched.FOLDER.mkdir()
    record = {"magma": "2.10.0", "commit": "c" * 40, "nvcc": "13.0"}
    (magma_vbatched.FOLDER / "BUILD.json").write_text(json.dumps(record), encoding="utf-8")
    magma_vbatched._problem.cache_clear()
    assert "sgemm_vbatched.so: cannot open shared object" in adapter.check(case()).reason
    assert adapter.version() == "2.10.0 (commit cccccccccccc, nvcc 13.0)"
    monkeypatch.setattr(magma_vbatched, "load", lambda path: None)
    for capability, status in (((9, 0), Status.OK), ((10, 0), Status.UNAVAILABLE)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        magma_vbatched._problem.cache_clear()
        assert adapter.check(case()).status is status


def test_the_source_declares_what_the_adapter_calls():
    text = (BUILD / "sgemm_vbatched.cu").read_text(encoding="utf-8")
    (parameters,) = re.findall(r'^extern "C" int moe_magma_sgemm_vbatched\(([^)]*)\) {', text, re.MULTILINE)
    function = magma_vbatched.declared(StubLibrary()).moe_magma_sgemm_vbatched
    assert len(function.argtypes) == len(parameters.split(","))


# The tool.

NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0; fi
for argument; do last=$argument; done
for argument; do case $argument in -I*) test -d "${argument#-I}" || exit 3;; esac; done
echo "$@" > "$last"
"""


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """The tool, as when it is run as a file, with a wheel and a repository of the test's."""
    monkeypatch.syspath_prepend(BUILD)
    tiny_layer.load(BUILD / "build.py")
    tool = tiny_layer.load(BUILD / "kernels.py")
    origin = tmp_path / "magma_origin"
    for name, text in {
        "magmablas/sgemm_vbatched_core.cu": "",
        "include/magma_types.h": "".join(
            f"#define MAGMA_VERSION_{part} {number}\n" for part, number in zip(("MAJOR", "MINOR", "MICRO"), (2, 10, 0))
        ),
    }.items():
        (origin / name).parent.mkdir(parents=True)
        (origin / name).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, encoding="utf-8").stdout
    monkeypatch.setattr(tool, "MAGMA", tool.Source("some/magma", head.strip(), "magmablas"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{origin}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/some/magma")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = f"flashinfer_python-{tool.FLASHINFER}.dist-info"
    with zipfile.ZipFile(wheels / f"flashinfer_python-{tool.FLASHINFER}-py3-none-any.whl", "w") as wheel:
        for name in (f"{tool.MONO_MOE}src/moe.cuh", f"{tool.CUTLASS}cute/tensor.hpp", "flashinfer/other.py"):
            wheel.writestr(name, "")
        metadata = f"Metadata-Version: 2.1\nName: flashinfer-python\nVersion: {tool.FLASHINFER}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return tool


@pytest.fixture
def nvcc(tmp_path) -> Path:
    """A STUB of nvcc, which writes its arguments into the file that it was to make."""
    path = tmp_path / "nvcc"
    path.write_text(NVCC, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_both_kernels_land_where_their_adapters_look(kernels, nvcc, tmp_path, capsys):
    out = tmp_path / "peers"
    assert kernels.main(["--nvcc", str(nvcc), "--out", str(out)]) == 0
    for name, adapter in (("flashinfer", flashinfer_mono), ("magma", magma_vbatched)):
        assert {path.name for path in (out / name).iterdir()} == {"BUILD.json", adapter.LIBRARY}
    assert "code=sm_90a" in (out / "flashinfer" / "mono_moe.so").read_text(encoding="utf-8")
    record = json.loads((out / "magma" / "BUILD.json").read_text(encoding="utf-8"))
    assert (record["magma"], record["commit"], record["arch"]) == ("2.10.0", kernels.MAGMA.commit, "sm_90")
    assert "flashinfer 0.7.4 nvcc 13.0" in capsys.readouterr().out


def test_what_fails_costs_itself_alone_and_keeps_what_was_there(kernels, nvcc, tmp_path, capsys, monkeypatch):
    out = tmp_path / "peers"
    assert kernels.main(["magma", "--nvcc", str(nvcc), "--out", str(out)]) == 0
    assert kernels.main(["magma", "--nvcc", str(tmp_path / "no-nvcc"), "--out", str(out)]) == 1
    assert "cannot run" in capsys.readouterr().err
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert kernels.main(["--nvcc", str(nvcc), "--out", str(out)]) == 1
    assert "flashinfer: " in capsys.readouterr().err
    assert (out / "magma" / "sgemm_vbatched.so").exists()
    with pytest.raises(SystemExit):
        kernels.main(["cutlass"])
