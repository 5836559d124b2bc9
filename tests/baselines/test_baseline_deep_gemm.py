"""`deep_gemm` over a STUB of DeepGEMM's grouped GEMMs, and the rows around them in Triton's interpreter."""

from __future__ import annotations

import json
import sys
from functools import partial

import numpy as np
import pytest
import tiny_layer
import torch
from tiny_layer import error_of, stub_modules

from tritonmoe_bench.baselines import deep_gemm
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.baselines.parts import grouped_rows
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
    monkeypatch.setattr(deep_gemm, "find_nvcc", lambda: "/cuda/of/the/test/bin/nvcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    deep_gemm._problem.cache_clear()
    yield
    deep_gemm._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of deep_gemm: checks what its host code asserts on Hopper, multiplies the rows within `ends`, no more."""
    calls: list[tuple] = []
    (module,) = stub_modules(monkeypatch, "deep_gemm")
    module.alignment = 128
    module.set_mk_alignment_for_contiguous_layout = lambda rows: setattr(module, "alignment", rows)

    def multiply(a, b, out, ends, use_psum_layout):
        assert use_psum_layout
        total, k = a.shape
        assert total % module.alignment == 0
        assert out.shape == (total, b.shape[1])
        assert b.shape[2] == k
        assert out.dtype == torch.bfloat16
        assert ends.dtype == torch.int32
        assert ends.shape == (b.shape[0],)
        assert b.is_contiguous()
        out.fill_(float("nan"))
        begin = 0
        for expert, end in enumerate(ends.tolist()):
            assert begin <= end <= total
            out[begin:end] = (a[begin:end].float() @ b[expert].float().T).to(out.dtype)
            begin = -(-end // module.alignment) * module.alignment

    def fp8_grouped(a, b, out, ends, use_psum_layout=False):
        (values, scales), (weights, weight_scales) = a, b
        total, k = values.shape
        calls.append(("fp8", total, module.alignment))
        assert values.dtype == weights.dtype == torch.float8_e4m3fn
        assert values.is_contiguous()
        assert scales.shape == (total, k // 128)
        assert scales.stride() == (1, total)
        assert weight_scales.is_contiguous()
        dense = values.float() * scales.repeat_interleave(128, 1)
        multiply(dense, Fp8Block(weights, weight_scales).unpack(), out, ends, use_psum_layout)

    def bf16_grouped(a, b, out, ends, use_psum_layout=False):
        calls.append(("bf16", a.shape[0], module.alignment))
        assert a.dtype == b.dtype == torch.bfloat16
        assert a.is_contiguous()
        multiply(a, b, out, ends, use_psum_layout)

    module.m_grouped_fp8_fp4_gemm_nt_contiguous = fp8_grouped
    module.m_grouped_bf16_gemm_nt_contiguous = bf16_grouped
    return calls


def test_unavailable_says_why_and_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    check = deep_gemm.DeepGemm().check(fp8())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": pip install sgl-deep-gemm==0.1.5.post1")
    assert deep_gemm.DeepGemm().search_path() == []


def test_without_nvcc_it_is_unavailable(stub, monkeypatch):
    monkeypatch.setattr(deep_gemm, "find_nvcc", lambda: "")
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
        (case(ffn_dim=20), "must be multiples of 8"),
        (case(quant="int4"), "it computes with none, fp8_block"),
    ],
)
def test_what_it_cannot_do_is_unsupported(stub, point, reason):
    check = deep_gemm.DeepGemm().answer(point)
    assert check.status.value == "unsupported"
    assert reason in check.reason


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize(
    "point",
    [
        fp8(tokens=1),
        fp8(tokens=5, dtype="fp16"),
        fp8(tokens=40, hidden_dim=1152, skew=1.2, gating="softmax_renorm"),
        fp8(tokens=300, num_experts=5, skew=1.2),
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
    height = 128 if point.tokens == 300 else 64
    total = grouped_rows.most_rows(point.slots, point.num_experts, height)
    assert stub == [("fp8", total, height)] * 4
    assert adapter.config(point) == (f"contiguous layout with prefix sums, tiles of {height} rows, room for {total}")


@tiny_layer.ON_THE_CPU
@pytest.mark.parametrize("point", [case(tokens=6), case(tokens=2, hidden_dim=64, ffn_dim=48)], ids=str)
def test_bf16(stub, point):
    adapter = deep_gemm.DeepGemm()
    assert adapter.activations(point) == "a16"
    assert error_of(adapter, point) < 0.008
    assert stub == [("bf16", 64 * (8 if point.tokens == 6 else 4), 64)] * 4


@pytest.mark.parametrize("align", [64, 128])
@pytest.mark.parametrize(("slots", "experts"), [(1, 4), (3, 4), (260, 4), (517, 3), (4096, 8)])
def test_there_is_room_for_every_routing_and_for_no_row_more(slots, experts, align):
    def taken(counts):
        return sum(-(-count // align) * align for count in counts)

    most = grouped_rows.most_rows(slots, experts, align)
    rng = np.random.default_rng(slots)
    for skew in (0.0, 1.0, 3.0):
        popularity = np.arange(1, experts + 1) ** -skew
        assert taken(rng.multinomial(slots, popularity / popularity.sum()).tolist()) <= most
    others = min(slots, experts) - 1
    assert taken([slots - others, *[1] * others]) == most


def test_places_number_the_slots_of_each_expert_in_order(device):
    experts = torch.randint(0, 5, (300, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    experts[experts == 2] = 3
    places = grouped_rows.place(experts.to(device), 7, 64)
    flat, rows, begin = experts.flatten(), places.rows.flatten().cpu(), 0
    for expert, end in enumerate(places.ends.tolist()):
        assert rows[flat == expert].tolist() == list(range(begin, end))
        begin = -(-end // 64) * 64
    assert begin <= places.total


def test_scattered_rows_are_those_of_the_emulation(device):
    x = torch.randn(3, 384, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(2)).to(device)
    places = grouped_rows.place(torch.tensor([[0, 1], [1, 2], [2, 0]], dtype=torch.int32, device=device), 3, 64)
    made = grouped_rows.scatter(x, places, quantize=True)
    assert made.scales is not None
    expected = quantize_fp8(x.float())
    for token in range(3):
        for row in places.rows[token].tolist():
            values = made.values[row].float() * made.scales[row].repeat_interleave(128)
            torch.testing.assert_close(values, expected[token], rtol=2e-6, atol=0)
