"""`flashinfer_cutlass` without a GPU: the adapter over a STUB of the compiled layer, and the tool that compiles it over
a STUB of nvcc and of FlashInfer's wheel.

The stub computes what lies at the raw addresses, as fused_moe.cu describes it. Where .peers/flashinfer_cutlass is
built, the real library has what the adapter calls.
"""

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

from tritonmoe_bench.baselines import flashinfer_cutlass
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.reference import quantize_fp8
from tritonmoe_bench.experiments.workload.weights import Weights

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "baselines" / "builds" / "checkouts"
REAL = ROOT / ".peers" / "flashinfer_cutlass" / flashinfer_cutlass.LIBRARY
case = tiny_layer.case
fp8 = partial(tiny_layer.case, hidden_dim=256, ffn_dim=128, quant="fp8_block")
TACTICS = (2, 3)
WORKSPACE = 64


def tensor(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The contiguous tensor at an address: a view of the memory itself."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return torch.from_numpy(memory).view(dtype).view(shape)


def blocks(values: int, scales: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Dequantised e4m3 matrices with a scale per 128 x 128 of them."""
    experts, rows, columns = shape
    whole = tensor(scales, (experts, rows // 128, columns // 128), torch.float32)
    return tensor(values, shape, torch.float8_e4m3fn).float() * whole.repeat_interleave(128, 1).repeat_interleave(
        128, 2
    )


class StubLibrary:
    """A STUB of fused_moe.so on memory of the CPU. refused: tactics of down that take no shape."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        integer, pointer, text = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p
        self.fp8, self.alive, self.calls, self.refused = False, 0, [], refused
        self._said = {name: ctypes.create_string_buffer(name) for name in (b"tile 0", b"tile 1", b"tile 2", b"no tile")}
        self._last = b"no tile"
        say = ctypes.CFUNCTYPE(pointer)(lambda: ctypes.addressof(self._said[b"no tile"]))
        self.moe_flashinfer_error = ctypes.cast(say, ctypes.CFUNCTYPE(text))
        self._keep = say
        self.moe_flashinfer_create = ctypes.CFUNCTYPE(pointer, integer, integer, text)(self._create)
        self.moe_flashinfer_destroy = ctypes.CFUNCTYPE(None, pointer)(self._destroy)
        self.moe_flashinfer_tactics = ctypes.CFUNCTYPE(integer, pointer, integer)(
            lambda handle, gemm: 1 if self.fp8 else TACTICS[gemm]
        )
        self._describe = ctypes.CFUNCTYPE(pointer, pointer, integer, integer)(
            lambda handle, gemm, tactic: ctypes.addressof(self._said[b"tile %d" % tactic])
        )
        self.moe_flashinfer_describe = ctypes.cast(self._describe, ctypes.CFUNCTYPE(text, pointer, integer, integer))
        self.moe_flashinfer_workspace = ctypes.CFUNCTYPE(ctypes.c_longlong, pointer, *[integer] * 5)(
            lambda handle, *sizes: WORKSPACE
        )
        self.moe_flashinfer_run = ctypes.CFUNCTYPE(integer, *[pointer] * 10, *[integer] * 7, pointer)(self._run)

    def _create(self, fp8: int, fused_sum: int, headers: bytes) -> int:
        assert Path(headers.decode()) == flashinfer_cutlass.FOLDER
        self.fp8, self.alive = bool(fp8), self.alive + 1
        return 17

    def _destroy(self, handle: int) -> None:
        assert handle == 17
        self.alive -= 1

    def _run(self, handle, x, chosen, scores, up_gate, up_gate_scales, down, down_scales, out, workspace, *rest) -> int:
        tokens, hidden, ffn, experts, top_k, first, second, stream = rest
        self.calls.append((first, second))
        if second in self.refused or not workspace or stream:
            return -1
        shapes = (experts, 2 * ffn, hidden), (experts, hidden, ffn)
        rows = tensor(x, (tokens, hidden), torch.bfloat16).float()
        if self.fp8:
            one, two = blocks(up_gate, up_gate_scales, shapes[0]), blocks(down, down_scales, shapes[1])
            rows = quantize_fp8(rows)
        else:
            one, two = (tensor(at, shape, torch.bfloat16).float() for at, shape in zip((up_gate, down), shapes))
        slots = tensor(chosen, (tokens, top_k), torch.int32)
        weights = tensor(scores, (tokens, top_k), torch.float32)
        y = torch.zeros(tokens, hidden)
        for token in range(tokens):
            for expert, score in zip(slots[token], weights[token]):
                both = one[expert] @ rows[token]
                between = both[:ffn] * torch.nn.functional.silu(both[ffn:])
                between = quantize_fp8(between[None])[0] if self.fp8 else between
                y[token] += score * (two[expert] @ between)
        tensor(out, (tokens, hidden), torch.bfloat16).copy_(y)
        return 0


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """No .peers/flashinfer_cutlass, and no answer kept from another test."""
    monkeypatch.setattr(flashinfer_cutlass, "FOLDER", tmp_path / "flashinfer_cutlass")
    flashinfer_cutlass._problem.cache_clear()
    yield
    flashinfer_cutlass._problem.cache_clear()


def put(monkeypatch, stub: StubLibrary) -> StubLibrary:
    """A library that loads, on a Hopper GPU, with tactics whose times are 5, 3 and then 9, 7, 8."""
    folder = flashinfer_cutlass.FOLDER
    folder.mkdir()
    (folder / "BUILD.json").write_text(json.dumps({"flashinfer": "0.7.4", "nvcc": "13.0"}), encoding="utf-8")
    times = iter([5.0, 3.0, 9.0, 7.0, 8.0])

    def graph_us(call):
        try:
            call()
        except flashinfer_cutlass.Refused:
            next(times)
            return float("inf")
        return next(times)

    library = flashinfer_cutlass.declared(stub)
    monkeypatch.setattr(flashinfer_cutlass, "load", lambda path: library)
    monkeypatch.setattr(flashinfer_cutlass, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(flashinfer_cutlass, "_graph_us", graph_us)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return stub


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("fields", [{}, {"tokens": 1, "top_k": 4, "gating": "softmax_renorm"}, {"gating": "sigmoid"}])
def test_bf16_over_the_stub_tunes_and_agrees_with_the_reference(monkeypatch, fields):
    stub, point, adapter = put(monkeypatch, StubLibrary()), case(**fields), flashinfer_cutlass.FlashinferCutlass()
    weights = Weights(point, "cpu")
    with torch.inference_mode():
        forward = adapter.build(point, weights)
        assert stub.calls[:5] == [(0, 0), (1, 0), (1, 0), (1, 1), (1, 2)]
        assert adapter.config(point) == "gate_up: tile 1; down: tile 1"
        error, torch_error = tiny_layer.errors(forward, point, weights)
        assert error <= 1.5 * torch_error
        stub.calls.clear()
        adapter.build(point, Weights(point, "cpu", set_index=1))
    assert stub.calls == [(1, 1)]  # nothing is timed a second time
    del forward
    assert stub.alive == 0


@tiny_layer.ON_THE_CPU
def test_a_tactic_that_refuses_the_shape_is_not_taken(monkeypatch):
    put(monkeypatch, StubLibrary(refused=(1,)))
    adapter = flashinfer_cutlass.FlashinferCutlass()
    with torch.inference_mode():
        adapter.build(case(), Weights(case(), "cpu"))
    assert adapter.config(case()) == "gate_up: tile 1; down: tile 2"


@tiny_layer.ON_THE_CPU
def test_what_the_library_says_is_the_error_if_all_refuse(monkeypatch):
    put(monkeypatch, StubLibrary(refused=(0, 1, 2)))
    with pytest.raises(flashinfer_cutlass.Refused, match="no tile"), torch.inference_mode():
        flashinfer_cutlass.FlashinferCutlass().build(case(), Weights(case(), "cpu"))


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("fields", [{}, {"tokens": 1, "gating": "softmax_renorm"}])
def test_fp8_over_the_stub_is_the_emulation_of_its_formats(monkeypatch, fields):
    stub, point, adapter = put(monkeypatch, StubLibrary()), fp8(**fields), flashinfer_cutlass.FlashinferCutlass()
    assert adapter.activations(point) == "a8"
    assert tiny_layer.error_of(adapter, point) < 0.06  # what quantised activations cost
    assert set(stub.calls) == {(0, 0)}
    assert adapter.config(point) == "tiles by TensorRT-LLM's own rule"


def test_up_comes_before_gate():
    rows = torch.arange(8.0).view(1, 8, 1).expand(2, 8, 16).contiguous()
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float32):
        turned = flashinfer_cutlass.up_first(rows.to(dtype))
        assert turned.dtype == dtype
        assert turned.float()[1, :, 3].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_what_it_takes(monkeypatch):
    put(monkeypatch, StubLibrary())
    adapter = flashinfer_cutlass.FlashinferCutlass()
    assert adapter.version() == "0.7.4 (nvcc 13.0)"
    assert {adapter.answer(point).status for point in (case(), fp8())} == {Status.OK}
    for words, point in {
        "bf16 activations alone, got fp16": case(dtype="fp16"),
        "multiples of 8": case(ffn_dim=44),
        "quant=int4": case(quant="int4", hidden_dim=256, ffn_dim=128),
    }.items():
        answer = adapter.answer(point)
        assert (answer.status, words in answer.reason) == (Status.UNSUPPORTED, True), answer.reason


def test_fp8_without_nvcc_is_unavailable(monkeypatch):
    put(monkeypatch, StubLibrary())
    monkeypatch.setattr(flashinfer_cutlass, "find_nvcc", lambda: "")
    adapter = flashinfer_cutlass.FlashinferCutlass()
    assert "finds no nvcc: set CUDA_HOME" in adapter.check(fp8()).reason
    assert adapter.check(case()).status is Status.OK


def test_without_the_library_the_row_says_how_to_make_it():
    adapter = flashinfer_cutlass.FlashinferCutlass()
    check = adapter.check(case())
    assert (check.status, "checkouts/fused_moe.py" in check.reason) == (Status.UNAVAILABLE, True)
    assert adapter.version() == ""


def test_another_gpu(monkeypatch):
    put(monkeypatch, StubLibrary())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    assert "this GPU has 10.0" in flashinfer_cutlass.FlashinferCutlass().check(case()).reason


def test_the_source_declares_what_the_adapter_calls():
    text = (BUILD / "fused_moe.cu").read_text(encoding="utf-8")
    names = re.findall(r'^extern "C" [a-z *]+?(\w+)\(([^)]*)\) {', text, re.MULTILINE)
    library = flashinfer_cutlass.declared(StubLibrary())
    assert {name for name, _ in names} == {name for name in vars(library) if name.startswith("moe_flashinfer_")}
    for name, parameters in names:
        assert len(getattr(library, name).argtypes) == len([one for one in parameters.split(",") if one.strip()])


@pytest.mark.skipif(not REAL.exists(), reason="FlashInfer's layer is not compiled here")
def test_the_compiled_library_has_what_the_adapter_calls():
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(REAL)], check=True, capture_output=True, encoding="utf-8"
    )
    assert {line.split()[-1] for line in symbols.stdout.splitlines()} >= {
        name for name in vars(StubLibrary()) if name.startswith("moe_flashinfer_")
    }


GENERATOR = """
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
DataType = Enum("DataType", "bf16 f16")
TrtLlm_EpilogueTag = Enum("Tag", "epilogue_op_silu epilogue_op_gelu")
def generate_sm90_grouped_gemm_operations(enabled):
    return [SimpleNamespace(name=f"hopper_{kind.name}", act_type=kind, weight_type=kind) for kind in DataType]
def generate_sm80_fused_grouped_gemm_operations():
    return [SimpleNamespace(name=f"ampere_{kind.name}_{tag.name[-4:]}", dtype=kind, epi_tag=tag)
            for kind in DataType for tag in TrtLlm_EpilogueTag]
def generate_sm90_operations(enabled): return generate_sm90_grouped_gemm_operations(enabled)
def generate_sm80_operations(enabled): return generate_sm80_fused_grouped_gemm_operations()
def generate_gemm_operations(folder, architectures):
    Path(folder).mkdir()
    for one in generate_sm90_operations(True) + generate_sm80_operations(True):
        (Path(folder) / f"{one.name}.cu").touch()
"""
NVCC = """#!/usr/bin/env python3
import pathlib, sys
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("Cuda compilation tools, release 13.0, V13.0.88")
elif "broken.cu" in arguments[-3]:
    sys.exit("broken.cu(1): error")
else:
    pathlib.Path(arguments[-1]).write_text(" ".join(arguments))
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The tool, with a wheel of FlashInfer that pip finds, without kernels in it."""
    monkeypatch.syspath_prepend(BUILD)  # as when it is run as a file
    for name in ("build", "kernels"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    made = tiny_layer.load(BUILD / "fused_moe.py")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = f"flashinfer_python-{made.FLASHINFER}.dist-info"
    with zipfile.ZipFile(wheels / f"flashinfer_python-{made.FLASHINFER}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{made.GENERATOR}/generate_kernels.py", GENERATOR)
        wheel.writestr(f"{made.HEADERS}/scheduler.cuh", "")
        wheel.writestr("flashinfer/__init__.py", "raise ImportError('all of FlashInfer')")
        metadata = f"Metadata-Version: 2.1\nName: flashinfer-python\nVersion: {made.FLASHINFER}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(made.shutil, "which", lambda name: None)  # what the STUB of nvcc makes cannot be stripped
    return made


@pytest.fixture
def nvcc(tmp_path) -> Path:
    path = tmp_path / "nvcc"
    path.write_text(NVCC, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_library_lands_where_its_adapter_looks(tool, nvcc, tmp_path, capsys):
    out = tmp_path / "peers" / "flashinfer_cutlass"
    assert tool.main(["--nvcc", str(nvcc), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"BUILD.json", "deep_gemm", flashinfer_cutlass.LIBRARY}
    assert (out / "deep_gemm" / "scheduler.cuh").exists()
    linked = (out / flashinfer_cutlass.LIBRARY).read_text(encoding="utf-8").split()
    names = {Path(word).stem for word in linked if word.endswith(".o")}
    assert {"fused_moe", "fused_moe_gemms", "hopper_bf16", "ampere_bf16_silu", "lora"} <= names
    assert not {name for name in names if "f16" in name.split("_") or "gelu" in name}
    record = json.loads((out / "BUILD.json").read_text(encoding="utf-8"))
    assert (record["flashinfer"], record["nvcc"], record["arch"]) == (tool.FLASHINFER, "13.0", "sm_90a")
    assert "compiled hopper_bf16.cu" in capsys.readouterr().out


def test_a_file_that_does_not_compile_keeps_what_was_there(tool, nvcc, tmp_path, capsys, monkeypatch):
    out = tmp_path / "peers"
    assert tool.main(["--nvcc", str(nvcc), "--out", str(out)]) == 0
    monkeypatch.setattr(tool, "OURS", ("broken.cu",))
    assert tool.main(["--nvcc", str(nvcc), "--out", str(out)]) == 1
    assert "broken.cu(1): error" in capsys.readouterr().err
    assert (out / flashinfer_cutlass.LIBRARY).exists()
