"""`deep_gemm` over a STUB of DeepGEMM's grouped GEMMs, and the rows around them in Triton's interpreter."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest
import tiny_layer
import torch
from tiny_layer import error_of, stub_modules

from tritonmoe_bench.baselines import deep_gemm
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.baselines.parts import masked_rows
from tritonmoe_bench.experiments.workload.reference import moe_forward, quantize_fp8, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block

case = partial(tiny_layer.case, hidden_dim=256, ffn_dim=128)
fp8 = partial(case, quant="fp8_block")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """No .peers/deep_gemm, a GPU and a CUDA to compile with, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    monkeypatch.setenv("CUDA_HOME", "/cuda/of/the/test")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    deep_gemm._problem.cache_clear()
    yield
    deep_gemm._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of deep_gemm: checks what its host code asserts on Hopper, multiplies what the counts say, no more."""
    calls: list[tuple] = []
    (module,) = stub_modules(monkeypatch, "deep_gemm")

    def multiply(a, b, out, counts, expected_m):
        experts, capacity, k = a.shape
        assert out.shape == (experts, capacity, b.shape[1])
        assert b.shape[2] == k
        assert out.dtype == torch.bfloat16
        assert counts.dtype == torch.int32
        assert counts.shape == (experts,)
        assert expected_m > 0
        assert capacity % 128 == 0
        assert all(tensor.is_contiguous() for tensor in (a, b, out, counts)) or a.dtype == torch.float32
        out.fill_(float("nan"))
        for expert, count in enumerate(counts.tolist()):
            rows = a[expert, :count].float()
            out[expert, :count] = (rows @ b[expert].float().T).to(out.dtype)

    def fp8_masked(a, b, out, counts, expected_m):
        (values, scales), (weights, weight_scales) = a, b
        experts, capacity, k = values.shape
        calls.append(("fp8", capacity, expected_m))
        assert values.dtype == weights.dtype == torch.float8_e4m3fn
        assert values.is_contiguous()
        assert scales.shape == (experts, capacity, k // 128)
        assert scales.stride() == (capacity * (k // 128), 1, capacity)
        assert weight_scales.is_contiguous()
        dense = values.float() * scales.repeat_interleave(128, 2)
        multiply(dense, Fp8Block(weights, weight_scales).unpack(), out, counts, expected_m)

    def bf16_masked(a, b, out, counts, expected_m):
        calls.append(("bf16", a.shape[1], expected_m))
        assert a.dtype == b.dtype == torch.bfloat16
        multiply(a, b, out, counts, expected_m)

    module.m_grouped_fp8_fp4_gemm_nt_masked = fp8_masked
    module.m_grouped_bf16_gemm_nt_masked = bf16_masked
    return calls


def test_unavailable_says_why_and_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    check = deep_gemm.DeepGemm().check(fp8())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": pip install sgl-deep-gemm==0.1.5.post1")
    assert deep_gemm.DeepGemm().search_path() == []


def test_without_nvcc_it_is_unavailable(stub, monkeypatch):
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(deep_gemm, "_has_nvcc", lambda: False)
    check = deep_gemm.DeepGemm().check(fp8())
    assert check.status.value == "unavailable"
    assert "finds no nvcc: set CUDA_HOME" in check.reason


def test_other_gpus_are_unavailable(stub, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    assert "this GPU has 10.0" in deep_gemm.DeepGemm().check(fp8()).reason


def test_the_tree_is_found_with_its_version(stub):
    folder = trees.FOLDER / "deep_gemm"
    (folder / "deep_gemm").mkdir(parents=True)
    (folder / "BUILD.json").write_text(json.dumps({"sgl_deep_gemm": "0.1.5.post1"}), encoding="utf-8")
    assert deep_gemm.DeepGemm().search_path() == [folder]
    assert deep_gemm.DeepGemm().version() == "0.1.5.post1"


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (case(dtype="fp16"), "take bf16 only"),
        (fp8(tokens=1025), "up to 1024 tokens"),
        (case(ffn_dim=20), "must be multiples of 8"),
        (case(quant="int4"), "it computes with none, fp8_block"),
    ],
)
def test_what_it_cannot_do_is_unsupported(stub, point, reason):
    check = deep_gemm.DeepGemm().answer(point)
    assert check.status.value == "unsupported"
    assert reason in check.reason


@pytest.mark.parametrize(
    "point",
    [
        fp8(tokens=1),
        fp8(tokens=5, dtype="fp16"),
        fp8(tokens=40, hidden_dim=1152, skew=1.2, gating="softmax_renorm"),
        fp8(tokens=3, num_experts=32, top_k=4, ffn_dim=1280, gating="deepseek_v3"),
    ],
    ids=str,
)
def test_fp8_is_as_near_as_the_emulation(stub, point):
    adapter, weights = deep_gemm.DeepGemm(), Weights(point, "cpu")
    assert adapter.answer(point).status.value == "ok"
    assert adapter.activations(point) == "a8"
    x = activations(point, draw_routing(point), "cpu")
    layer = (weights.router(), weights.expert, point.top_k, point.gate, weights.correction_bias())
    exact, emulated = moe_forward(x, *layer), moe_forward(x, *layer, x.dtype, quantize_fp8)
    assert error_of(adapter, point) < 1.2 * relative_error(emulated, exact)
    assert stub == [("fp8", 128, -(-point.slots // point.num_experts))] * 4
    assert adapter.config(point).startswith("masked layout: capacity=128 expected_m=")


@pytest.mark.parametrize("point", [case(tokens=6), case(tokens=2, hidden_dim=64, ffn_dim=48)], ids=str)
def test_bf16(stub, point):
    adapter = deep_gemm.DeepGemm()
    assert adapter.activations(point) == "a16"
    assert error_of(adapter, point) < 0.008
    assert stub == [("bf16", 128, 2 if point.tokens == 6 else 1)] * 4


def test_room_is_whole_tiles():
    assert [deep_gemm.capacity(case(tokens=tokens)) for tokens in (1, 128, 129, 1024)] == [128, 128, 256, 1024]


def test_places_number_the_slots_of_each_expert_in_order():
    experts = torch.randint(0, 5, (300, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    places = masked_rows.place(experts, 7, 1280)
    flat, rows = experts.flatten(), places.rows.flatten()
    assert places.counts.tolist() == torch.bincount(flat.long(), minlength=7).tolist()
    for expert in range(5):
        assert rows[flat == expert].tolist() == list(range(int(places.counts[expert])))


def test_scattered_rows_are_those_of_the_emulation():
    x = torch.randn(3, 384, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(2))
    places = masked_rows.place(torch.tensor([[0, 1], [1, 2], [2, 0]], dtype=torch.int32), 3, 128)
    made = masked_rows.scatter(x, places, quantize=True)
    assert made.scales is not None
    expected = quantize_fp8(x.float())
    for token in range(3):
        for expert, row in zip(places.experts[token].tolist(), places.rows[token].tolist()):
            values = made.values[expert, row].float() * made.scales[expert, row].repeat_interleave(128)
            torch.testing.assert_close(values, expected[token], rtol=2e-6, atol=0)
