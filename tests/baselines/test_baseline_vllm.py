"""The adapter of vLLM over a stub of the API that it calls, and, where .peers is, over its own Python code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_layer import NATIVE, case, error_of, native
from vllm_stub import FP8

from tritonmoe_bench.baselines import vllm
from tritonmoe_bench.baselines.install import trees

ROOT = Path(__file__).resolve().parents[2]
PROCESS = Path(__file__).with_name("vllm_process.py")
PEERS = ROOT / ".peers" / "vllm"
pytestmark = pytest.mark.usefixtures("no_vllm_built")


@pytest.mark.parametrize("adapter", [vllm.Vllm(), vllm.VllmTuned()], ids=lambda adapter: adapter.name)
def test_unavailable_says_why_and_what_to_type(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    check = adapter.check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": python baselines/builds/offline/prune_vllm.py")
    assert "vllm" in check.reason.split(": python")[0]
    assert adapter.search_path() == []


def test_a_tree_for_another_gpu_is_unavailable(vllm_calls):
    (trees.FOLDER / "vllm" / "vllm").mkdir(parents=True)
    (trees.FOLDER / "vllm" / "BUILD.json").write_text(json.dumps({"vllm": "0.22.1", "arch": "8.0"}), encoding="utf-8")
    check = vllm.Vllm().check(case())
    assert check.status.value == "unavailable"
    assert "made for compute capability 8.0, this GPU has 9.0" in check.reason
    assert vllm.Vllm().search_path() == [trees.FOLDER / "vllm"]
    assert vllm.Vllm().version() == "0.22.1"


@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid", "sigmoid_renorm"])
def test_layouts_and_flags(vllm_calls, gating):
    adapter, point = vllm.Vllm(), case(gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert vllm_calls[-2] == ("fused_topk", 2, point.gate.renormalize, point.gate.scoring)
    assert vllm_calls[-1] == ("fused_experts", (8, 96, 64), (8, 64, 48), False, False, None)
    assert adapter.config(point) == "BLOCK_SIZE_M=16 shape=(8, 64, 48) (E=8,N=48,device_name=STUB.json at M=1)"


@pytest.mark.parametrize("facts", NATIVE, ids=str)
def test_native_layers(vllm_calls, facts):
    adapter, point = vllm.Vllm(), native(facts)
    assert adapter.answer(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01


def test_a_shared_expert_of_packed_weights_is_unsupported(vllm_calls):
    check = vllm.Vllm().answer(native({"shared_ffn": 128}, **FP8))
    assert check.status.value == "unsupported"
    assert check.reason == "quant=fp8_block: run here with SwiGLU experts alone, without biases or a shared expert"


def test_fp8_block_weights_run_as_they_are_with_their_table(vllm_calls):
    adapter, point = vllm.Vllm(), case(**FP8)
    assert adapter.answer(point).status.value == "ok"
    assert adapter.activations(point) == "a8"
    assert adapter.activations(case()) == "a16"
    assert 0.008 < error_of(adapter, point) < 0.06
    assert vllm_calls[-1] == ("fused_experts", (8, 256, 128), (8, 128, 128), False, False, None)
    assert adapter.config(point) == (
        "BLOCK_SIZE_M=16 shape=(8, 128, 128) dtype=fp8_w8a8 block_shape=[128, 128] BLOCK_SIZE_N=128 BLOCK_SIZE_K=128 "
        "num_stages=3 (E=8,N=128,device_name=STUB,dtype=fp8_w8a8,block_shape=[128, 128].json at M=1)"
    )
    assert adapter.answer(case(quant="mxfp4", hidden_dim=128, ffn_dim=128)).status.value == "unsupported"


@pytest.mark.parametrize("quant", ["int4", "int4_g32"])
def test_int4_weights_run_as_they_are_with_16_bit_activations(vllm_calls, quant):
    adapter, point = vllm.Vllm(), case(quant=quant, hidden_dim=128, ffn_dim=256)
    assert adapter.answer(point).status.value == "ok"
    assert adapter.activations(point) == "a16"
    assert error_of(adapter, point) < 0.01
    assert vllm_calls[-1] == ("fused_experts", (8, 512, 64), (8, 128, 128), False, False, None)
    assert "shape=(8, 128, 128) dtype=int4_w4a16" in adapter.config(point)
    assert vllm.VllmTuned().answer(point).status.value == "unsupported"


@pytest.mark.parametrize(
    ("gating", "groups", "top_groups", "scale"), [("deepseek_v3", 8, 4, 2.5), ("kimi_k2", 1, 1, 2.827)]
)
def test_native_gating_of_deepseek_and_kimi(vllm_calls, gating, groups, top_groups, scale):
    adapter, point = vllm.Vllm(), case(num_experts=32, top_k=4, gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert vllm_calls[-2] == ("grouped_topk", groups, top_groups, 4, True, scale, 1)
    assert adapter.config(point).endswith("(default heuristic)")


@pytest.mark.parametrize(("tokens", "dtype", "own"), [(16, "bf16", True), (17, "bf16", False), (3, "fp16", False)])
def test_router_gemm_of_vllm_where_it_serves(vllm_calls, tokens, dtype, own):
    point = case(num_experts=256, hidden_dim=7168, ffn_dim=8, tokens=tokens, dtype=dtype)
    assert error_of(vllm.Vllm(), point) < 0.01
    assert (("dsv3_router_gemm", torch.bfloat16) in vllm_calls) is own


@pytest.mark.slow
@pytest.mark.skipif(not (PEERS / "vllm").is_dir(), reason="no .peers: python baselines/builds/offline/prune_vllm.py")
def test_over_vllms_own_python_code():
    pytest.importorskip("regex")
    command = [sys.executable, str(PROCESS), str(PEERS)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 12
    for result in results:
        assert result["error"] < result["allowed"]
        assert result["tuned_error"] < result["allowed"]
        assert {name: result["tuned_launch"][name] for name in result["tile"]} == result["tile"]
    assert results[8]["table"] == "E=8,N=14336,device_name=NVIDIA_H200.json"
    assert results[8]["config"].endswith("(E=8,N=14336,device_name=NVIDIA_H200.json at M=32)")
    assert results[8]["launch"]["BLOCK_SIZE_N"] == 128
    old = json.loads((PEERS / "BUILD.json").read_text(encoding="utf-8"))["vllm"] == "0.22.1"
    assert results[7]["called"] == ["dsv3_router_gemm"] * 3 * old
    naive = [False] * 4 + [True] + [False] * 2 + [True, False] + [False, True, False]
    assert [result["launch"]["naive"] for result in results] == naive
    assert [result["launch"]["use_fp8_w8a8"] for result in results] == [False] * 9 + [True] * 3
    table = "E=8,N=2048,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"
    assert [result["table"] for result in results[9:]] == ["", "", table]
    assert results[9]["config"].endswith("(default heuristic)")
    assert results[11]["config"].endswith(f"({table} at M=2)")
    assert results[9]["launch"]["BLOCK_SIZE_K"] == 128
