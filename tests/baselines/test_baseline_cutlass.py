"""`cutlass_grouped` without a GPU: the adapter over a STUB of the compiled library, and the build over a STUB of nvcc.

The stub multiplies what lies at the raw addresses by `ends`, as grouped_gemm.cu describes it. Where .peers/cutlass is
built, the real library is loaded and asked for its tiles too.
"""

from __future__ import annotations

import ctypes
import json
import re
import runpy
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import cutlass_grouped
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE
from tritonmoe_bench.experiments.workload.weights import Weights

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "baselines" / "builds" / "cutlass" / "build.py"
REAL = ROOT / ".peers" / "cutlass"
case = partial(tiny_layer.case, ffn_dim=40)
integer, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
NAMES = (b"tile zero", b"tile one", b"tile two")
WORKSPACE = 256


def matrix(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The contiguous matrices at an address: a view of the memory itself."""
    count = int(np.prod(shape))
    words = np.ctypeslib.as_array((ctypes.c_int16 * count).from_address(address))
    return torch.from_numpy(words).view(dtype).view(shape)


class StubLibrary:
    """A STUB of the library that build.py makes, on memory of the CPU."""

    def __init__(self, dtype: torch.dtype, status: int = 0) -> None:
        self.calls: list[tuple] = []
        self.dtype, self.status = dtype, status
        self.moe_cutlass_tiles = ctypes.CFUNCTYPE(integer)(lambda: len(NAMES))
        self._kept = [ctypes.create_string_buffer(name) for name in NAMES]
        describe = ctypes.CFUNCTYPE(ctypes.c_char_p, integer)
        self.moe_cutlass_describe_tile = describe(lambda tile: ctypes.addressof(self._kept[tile]))
        self.moe_cutlass_workspace = ctypes.CFUNCTYPE(size, integer, integer)(lambda tile, experts: WORKSPACE + tile)
        prototype = ctypes.CFUNCTYPE(
            integer, integer, pointer, pointer, pointer, pointer, integer, integer, integer, pointer, size, pointer
        )
        self.moe_cutlass_grouped_gemm = prototype(self._gemm)

    def _gemm(self, tile, weights, rows, out, ends, experts, n, k, workspace, workspace_bytes, stream) -> int:
        self.calls.append((tile, experts, n, k))
        if workspace_bytes < WORKSPACE + tile or not workspace or stream:
            return -3
        last = np.ctypeslib.as_array((ctypes.c_int32 * experts).from_address(ends))
        stacked = matrix(weights, (experts, n, k), self.dtype)
        total = int(last[-1])
        inward, outward = matrix(rows, (total, k), self.dtype), matrix(out, (total, n), self.dtype)
        for expert, (start, end) in enumerate(zip([0, *last[:-1]], last)):
            outward[start:end] = (inward[start:end].float() @ stacked[expert].float().T).to(self.dtype)
        return self.status


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """No .peers/cutlass, and no answer kept from another test."""
    monkeypatch.setattr(cutlass_grouped, "FOLDER", tmp_path / "cutlass")
    cutlass_grouped._problem.cache_clear()
    yield
    cutlass_grouped._problem.cache_clear()


def record(folder: Path) -> None:
    folder.mkdir()
    (folder / "BUILD.json").write_text(
        json.dumps({"cutlass": "4.2.0", "nvcc": "13.0", "arch": "sm_90a"}), encoding="utf-8"
    )


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize(
    "fields",
    [{}, {"dtype": "fp16", "tokens": 33, "gating": "softmax_renorm"}, {"tokens": 40, "skew": 2.0, "gating": "sigmoid"}],
    ids=str,
)
def test_build_over_the_stub_tunes_and_agrees_with_the_reference(monkeypatch, fields):
    made = case(**fields)
    stub = cutlass_grouped.declared(StubLibrary(TORCH_DTYPE[made.dtype]))
    loaded: list[Path] = []
    monkeypatch.setattr(cutlass_grouped, "load", lambda path: loaded.append(path) or stub)
    times = iter([5.0, 3.0, 4.0, 9.0, 8.0, 7.0])

    def gpu_us(call):
        call()
        return next(times)

    monkeypatch.setattr(cutlass_grouped, "_gpu_us", gpu_us)
    adapter, weights = cutlass_grouped.CutlassGrouped(), Weights(made, "cpu")
    forward = adapter.build(made, weights)
    assert {path.name for path in loaded} == {f"{made.dtype}.so"}
    assert adapter.config(made) == "gate_up: tile one; down: tile two"
    assert adapter.config(case(tokens=3)) == ""
    gate_up, down = (2 * made.ffn_dim, made.hidden_dim), (made.hidden_dim, made.ffn_dim)
    assert stub.calls == [(tile, 8, *shape) for shape in (gate_up, down) for tile in range(3)]
    stub.calls.clear()
    with torch.inference_mode():
        error, torch_error = tiny_layer.errors(forward, made, weights)
    assert error <= 1.5 * torch_error
    assert stub.calls == [(1, 8, *gate_up), (2, 8, *down)]


def test_tuning_deals_the_rows_evenly(monkeypatch):
    stub = cutlass_grouped.declared(StubLibrary(torch.bfloat16))
    weights = torch.randn(4, 8, 16).to(torch.bfloat16)
    gemm = cutlass_grouped.GroupedGemm(stub, weights)
    seen = []
    call = type(gemm).__call__
    monkeypatch.setattr(type(gemm), "__call__", lambda self, rows, ends, out: seen.append(ends.tolist()) or call(
        self, rows, ends, out))  # fmt: skip
    gemm.tune(10, lambda run: (run(), 1.0)[1])
    assert seen == [[2, 5, 7, 10]] * 3
    assert gemm.tile == 0


def test_a_status_is_an_error_in_words():
    stub = cutlass_grouped.declared(StubLibrary(torch.bfloat16, status=-4))
    gemm = cutlass_grouped.GroupedGemm(stub, torch.ones(2, 8, 16, dtype=torch.bfloat16))
    ends = torch.tensor([1, 3], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="did not initialise or launch the kernel, tile tile zero"):
        gemm(torch.ones(3, 16, dtype=torch.bfloat16), ends, torch.zeros(3, 8, dtype=torch.bfloat16))


def test_unavailable_when_it_is_not_compiled_or_does_not_load():
    adapter = cutlass_grouped.CutlassGrouped()
    check = adapter.check(case())
    assert check.status is Status.UNAVAILABLE
    assert "python baselines/builds/cutlass/build.py" in check.reason
    assert adapter.version() == ""
    record(cutlass_grouped.FOLDER)
    cutlass_grouped._problem.cache_clear()
    check = adapter.check(case())
    assert check.status is Status.UNAVAILABLE
    assert re.search(r"bf16\.so: cannot open shared object.*build\.py", check.reason)
    assert adapter.version() == "CUTLASS 4.2.0 (nvcc 13.0)"


def test_another_gpu_and_another_alignment(monkeypatch):
    record(cutlass_grouped.FOLDER)
    monkeypatch.setattr(cutlass_grouped, "load", lambda path: None)
    adapter = cutlass_grouped.CutlassGrouped()
    assert adapter.check(case()).status is Status.OK
    check = adapter.check(case(ffn_dim=36))
    assert (check.status, "ffn_dim=36" in check.reason) == (Status.UNSUPPORTED, True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, status in (((8, 0), Status.UNAVAILABLE), ((10, 0), Status.UNAVAILABLE), ((9, 0), Status.OK)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        cutlass_grouped._problem.cache_clear()
        assert adapter.check(case()).status is status


def test_the_source_declares_what_the_adapter_calls():
    text = (BUILD.parent / "grouped_gemm.cu").read_text(encoding="utf-8")
    exported = text[text.index('extern "C" {') :]
    stub = cutlass_grouped.declared(StubLibrary(torch.bfloat16))
    functions = {name: made for name, made in vars(stub).items() if name.startswith("moe_cutlass")}
    assert len(functions) == 4
    for name, function in functions.items():
        (parameters,) = re.findall(rf"^[a-z_ *]+ \*?{name}\(([^)]*)\) {{", exported, re.MULTILINE)
        assert len(function.argtypes) == len([one for one in parameters.split(",") if one.strip()])
    for status, words in cutlass_grouped.ERRORS.items():
        assert re.search(rf"k\w+ = {status}\b", text), words


@pytest.mark.skipif(not (REAL / "BUILD.json").exists(), reason="not built: python baselines/builds/cutlass/build.py")
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_the_real_library_loads_and_names_its_tiles(name):
    library = cutlass_grouped.load(REAL / f"{name}.so")
    tiles = [library.moe_cutlass_describe_tile(tile) for tile in range(library.moe_cutlass_tiles())]
    assert len(set(tiles)) == len(tiles) > 1
    assert library.moe_cutlass_describe_tile(len(tiles)) is None
    assert all(library.moe_cutlass_workspace(tile, 256) >= 256 * 60 for tile in range(len(tiles)))
    assert library.moe_cutlass_workspace(len(tiles), 256) == 0
    space, refused = ctypes.create_string_buffer(64), (-1, -2, -3)
    arguments = [(99, 8, 16), (0, 9, 16), (0, 8, 16)]
    for (tile, n, k), status in zip(arguments, refused):
        assert library.moe_cutlass_grouped_gemm(tile, *[None] * 4, 2, n, k, space, 64, None) == status


# The build.

NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0; fi
for argument; do last=$argument; done
for argument; do case $argument in -I*) test -f "${argument#-I}/cutlass/cutlass.h" || exit 3;; esac; done
echo "$@" > "$last"
"""


@pytest.fixture
def nvcc(tmp_path) -> Path:
    """A STUB of nvcc, which writes its arguments into the file that it was to make."""
    path = tmp_path / "nvcc"
    path.write_text(NVCC, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "nvidia_cutlass-4.2.0.0-py3-none-any.whl"
    version = "#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cutlass_library/source/include/cutlass/cutlass.h", "")
        archive.writestr("cutlass_library/source/include/cutlass/version.h", version)
        archive.writestr("cutlass_library/source/examples/a.cu", "")
    return path


def build(*arguments: object) -> int:
    return runpy.run_path(str(BUILD))["main"]([str(argument) for argument in arguments])


def test_build_makes_both_libraries_and_then_nothing(nvcc, wheel, tmp_path, capfd):
    out = tmp_path / "out"
    assert build("--wheel", wheel, "--nvcc", nvcc, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["BUILD.json", "bf16.so", "fp16.so"]
    assert "code=sm_90a -DELEMENT=half_t" in (out / "fp16.so").read_text(encoding="utf-8")
    assert "-DELEMENT=bfloat16_t" in (out / "bf16.so").read_text(encoding="utf-8")
    made = json.loads((out / "BUILD.json").read_text(encoding="utf-8"))
    assert (made["cutlass"], made["nvcc"], made["arch"]) == ("4.2.0", "13.0", "sm_90a")
    (out / "bf16.so").write_text("kept", encoding="utf-8")
    assert build("--wheel", wheel, "--nvcc", nvcc, "--out", out) == 0
    assert (out / "bf16.so").read_text(encoding="utf-8") == "kept"
    assert "up to date: CUTLASS 4.2.0, nvcc 13.0, sm_90a" in capfd.readouterr().out


def test_build_takes_a_checkout(nvcc, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    checkout = tmp_path / "unpacked" / "cutlass_library" / "source"
    assert build("--cutlass", checkout, "--nvcc", nvcc, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "bf16.so").exists()


def test_build_says_what_is_missing_and_keeps_what_was_there(nvcc, wheel, tmp_path, capfd):
    out = tmp_path / "out"
    assert build("--wheel", wheel, "--nvcc", tmp_path / "no-nvcc", "--out", out) == 1
    assert "CUDA 12 or later is needed" in capfd.readouterr().err
    assert build("--cutlass", tmp_path, "--nvcc", nvcc, "--out", out) == 1
    assert "has no CUTLASS headers" in capfd.readouterr().err
    assert build("--wheel", wheel, "--nvcc", nvcc, "--out", out) == 0
    (out / "BUILD.json").write_text("{}", encoding="utf-8")
    nvcc.write_text(NVCC.replace('echo "$@" > "$last"', "exit 1"), encoding="utf-8")
    assert build("--wheel", wheel, "--nvcc", nvcc, "--out", out) == 1
    assert "did not compile grouped_gemm.cu for bf16" in capfd.readouterr().err
    assert (out / "bf16.so").exists()
