"""`flashinfer_mono` without a GPU: the adapter over a STUB of the compiled kernel, and what its row says elsewhere.

The stub computes what lies at the raw addresses, as mono_moe.cu describes it, and counts on its scratch being zeros.
"""

from __future__ import annotations

import ctypes
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines import flashinfer_mono
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.reference import quantize_fp8, route
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels.gating import Gating

SOURCE = Path(__file__).resolve().parents[2] / "baselines" / "builds" / "checkouts" / "mono_moe.cu"
EXPERTS, HIDDEN, FFN = 8, 256, 128
case = partial(tiny_layer.case, num_experts=EXPERTS, hidden_dim=HIDDEN, ffn_dim=FFN, quant="fp8_block")
real = partial(tiny_layer.case, num_experts=256, hidden_dim=2048, ffn_dim=512, top_k=8, quant="fp8_block")
SCRATCH = 64


def tensor(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The contiguous tensor at an address: a view of the memory itself."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return torch.from_numpy(memory).view(dtype).view(shape)


def dequantised(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return values.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)


class StubLibrary:
    """A STUB of mono_moe.so on memory of the CPU."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.moe_mono_scratch_bytes = ctypes.CFUNCTYPE(ctypes.c_longlong)(lambda: SCRATCH)
        integer, pointer = ctypes.c_int, ctypes.c_void_p
        self.moe_mono_launch = ctypes.CFUNCTYPE(integer, *[pointer] * 8, *[integer] * 4, pointer)(self._launch)

    def _launch(self, x, logits, gate_up, gate_up_scales, down, down_scales, out, scratch, *rest) -> int:
        tokens, top_k, softmax, renormalize, stream = rest
        if tensor(scratch, (SCRATCH,), torch.uint8).any() or stream:
            return -1
        gating = Gating("softmax" if softmax else "sigmoid", bool(renormalize))
        rows = quantize_fp8(tensor(x, (tokens, HIDDEN), torch.bfloat16).float())
        scores, chosen = route(tensor(logits, (tokens, EXPERTS), torch.bfloat16), top_k, gating, None)
        turns = tensor(gate_up, (EXPERTS, FFN // 8, 2, 8, HIDDEN), torch.float8_e4m3fn)
        first = tensor(gate_up_scales, (EXPERTS, 2 * FFN // 128, HIDDEN // 128), torch.float32)
        second = tensor(down, (EXPERTS, HIDDEN, FFN), torch.float8_e4m3fn)
        second_scales = tensor(down_scales, (EXPERTS, HIDDEN // 128, FFN // 128), torch.float32)
        y = torch.zeros(tokens, HIDDEN)
        for token in range(tokens):
            for score, expert in zip(scores[token], chosen[token]):
                halves = turns[expert].view(torch.uint8).transpose(0, 1).reshape(2 * FFN, HIDDEN)
                both = dequantised(halves.view(torch.float8_e4m3fn), first[expert]) @ rows[token]
                between = quantize_fp8((torch.nn.functional.silu(both[:FFN]) * both[FFN:])[None])[0]
                y[token] += score * (dequantised(second[expert], second_scales[expert]) @ between)
        tensor(out, (tokens, HIDDEN), torch.bfloat16).copy_(y)
        return self.status


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """No .peers/flashinfer, and no answer kept from another test."""
    monkeypatch.setattr(flashinfer_mono, "FOLDER", tmp_path / "flashinfer")
    flashinfer_mono._problem.cache_clear()
    yield
    flashinfer_mono._problem.cache_clear()


@pytest.fixture
def made(monkeypatch):
    """A library that loads, on a Hopper GPU."""
    folder = flashinfer_mono.FOLDER
    folder.mkdir()
    (folder / "BUILD.json").write_text(json.dumps({"flashinfer": "0.7.4", "nvcc": "13.0"}), encoding="utf-8")
    stub = flashinfer_mono.declared(StubLibrary())
    monkeypatch.setattr(flashinfer_mono, "load", lambda path: stub)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return stub


@pytest.mark.parametrize(
    "fields", [{}, {"tokens": 1, "top_k": 4, "gating": "softmax_renorm"}, {"tokens": 8, "gating": "sigmoid"}], ids=str
)
def test_the_layer_over_the_stub_is_the_emulation_of_its_formats(made, fields):
    point, adapter = case(**fields), flashinfer_mono.FlashinferMono()
    assert adapter.activations(point) == "a8"
    assert tiny_layer.error_of(adapter, point) < 0.06  # what quantised activations cost


def test_rows_of_gate_and_up_lie_in_turns_of_eight():
    rows = torch.arange(64.0).view(1, 64, 1).to(torch.float8_e4m3fn).expand(1, 64, 16).contiguous()
    turned = flashinfer_mono.in_turns(rows)
    order = [*range(0, 8), *range(32, 40), *range(8, 16), *range(40, 48)]
    assert torch.equal(turned.float()[0, :32, 0], rows.float()[0, order, 0])
    assert turned.dtype == rows.dtype


def test_one_shape_and_up_to_eight_tokens(made):
    adapter = flashinfer_mono.FlashinferMono()
    assert adapter.check(real()).status is Status.OK
    assert adapter.version() == "0.7.4 (nvcc 13.0)"
    refused = {
        "256 experts": {"ffn_dim": 768},
        "up to 8 tokens": {"tokens": 9},
        "bf16 activations only, got fp16": {"dtype": "fp16"},
        "gating=deepseek_v3": {"gating": "deepseek_v3"},
    }
    for words, fields in refused.items():
        check = adapter.check(real(**fields))
        assert (check.status, words in check.reason) == (Status.UNSUPPORTED, True), check.reason
    assert "fp8_block" in adapter.answer(real(quant="none")).reason


def test_a_failed_launch_is_named(made):
    made.moe_mono_launch = lambda *arguments: -3
    weights = Weights(case(), "cpu")
    with pytest.raises(RuntimeError, match="refused a TMA descriptor"):
        flashinfer_mono.FlashinferMono().build(case(), weights)


def test_without_the_library_the_row_says_how_to_make_it(monkeypatch):
    adapter = flashinfer_mono.FlashinferMono()
    assert "kernels.py flashinfer" in adapter.check(real()).reason
    assert adapter.version() == ""


def test_another_gpu(made, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    check = flashinfer_mono.FlashinferMono().check(real())
    assert (check.status, "this GPU has 10.0" in check.reason) == (Status.UNAVAILABLE, True)


def test_the_source_declares_what_the_adapter_calls():
    text = SOURCE.read_text(encoding="utf-8")
    for name in ("moe_mono_scratch_bytes", "moe_mono_launch"):
        (parameters,) = re.findall(rf'^extern "C" [a-z ]+ {name}\(([^)]*)\) {{', text, re.MULTILINE)
        function = getattr(flashinfer_mono.declared(StubLibrary()), name)
        assert len(function.argtypes or ()) == len([one for one in parameters.split(",") if one.strip()])
    for status in flashinfer_mono.ERRORS:
        assert re.search(rf"k\w+ = {status}\b", text)
