"""The adapters of vLLM over a stub of the API that they call, and, where .peers is, over vLLM's own Python code."""

import json
import os
import subprocess
import sys
import types
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from tiny_layer import NATIVE, case, error_of, native, silu_and_mul, stub_modules

from tritonmoe_bench.baselines import vllm
from tritonmoe_bench.baselines.install import trees
from tritonmoe_bench.baselines.parts import vllm_tuning
from tritonmoe_bench.experiments.workload.reference import activate, quantize_fp8, route
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.formats.int4 import Int4, Int4Group32
from tritonmoe_bench.kernels.gating import Gating

ROOT = Path(__file__).resolve().parents[2]
PROCESS = Path(__file__).with_name("vllm_process.py")
TABLE = {1: {"BLOCK_SIZE_M": 16}, 64: {"BLOCK_SIZE_M": 64}}
FP8 = {"quant": "fp8_block", "hidden_dim": 128, "ffn_dim": 128}
TILE = {"BLOCK_SIZE_M": 32, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch, tmp_path):
    """No .peers, no file of tuned tiles, and no answer kept from another test."""
    monkeypatch.setattr(trees, "FOLDER", tmp_path / ".peers")
    monkeypatch.setenv("TRITONMOE_VLLM_TUNED", str(tmp_path / "tuned.json"))
    monkeypatch.setattr(vllm_tuning, "version", lambda: "0.22.1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    vllm_tuning._memory.clear()
    vllm._problem.cache_clear()
    yield
    vllm._problem.cache_clear()


@pytest.fixture
def stub(monkeypatch):
    """A STUB of the part of vLLM 0.22.1 that the adapter calls; it computes in PyTorch and notes the calls."""
    calls: list[tuple] = []

    def fused_topk(hidden_states, gating_output, topk, renormalize, indices_type=None, scoring_func="softmax"):
        calls.append(("fused_topk", topk, renormalize, scoring_func))
        scores = gating_output.float()
        scores = scores.softmax(-1) if scoring_func == "softmax" else scores.sigmoid()
        weights, experts = scores.topk(topk, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True) if renormalize else weights
        return weights, experts.int(), experts.int()

    def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, inplace=False, activation="silu",
                      apply_router_weight_on_input=False, quant_config=None):  # fmt: skip
        calls.append(("fused_experts", tuple(w1.shape), tuple(w2.shape), inplace, apply_router_weight_on_input,
                      layers.get_config()))  # fmt: skip
        assert w1.is_contiguous()
        assert w2.is_contiguous()
        rounded = lambda rows: rows  # noqa: E731
        biases = quant_config or {}
        if "w1_scale" in biases:
            kind = {"[128, 128]": Fp8Block, "[0, 128]": Int4, "[0, 32]": Int4Group32}[str(quant_config["block_shape"])]
            assert w1.dtype == w2.dtype == (torch.float8_e4m3fn if kind is Fp8Block else torch.uint8)
            rounded = quantize_fp8 if kind is Fp8Block else rounded
            w1, w2 = kind(w1, quant_config["w1_scale"]).unpack(), kind(w2, quant_config["w2_scale"]).unpack()
            assert os.environ["VLLM_USE_DEEP_GEMM"] == "0"
        y = torch.zeros_like(hidden_states, dtype=torch.float32)
        for token, row in enumerate(rounded(hidden_states).float()):
            for weight, expert in zip(topk_weights[token], topk_ids[token]):
                first, last = (weight, 1.0) if apply_router_weight_on_input else (1.0, weight)
                both, bias = w1[expert].float() @ row, biases.get("w1_bias")
                both = first * (both if bias is None else both + bias[expert])
                pairs = both.chunk(2) if activation == "silu" else (both[0::2], both[1::2])
                hidden = rounded(activate(*pairs, {"silu": "silu", "swigluoai": "gpt_oss"}[activation])[None])[0]
                out, bias = w2[expert].float() @ hidden, biases.get("w2_bias")
                y[token] += last * (out if bias is None else out + bias[expert])
        return y.to(hidden_states.dtype)

    def grouped_topk(scores, n_group, topk_group, topk, renormalize, scale, bias, scoring_func):
        calls.append(("grouped_topk", n_group, topk_group, topk, renormalize, scale, scoring_func))
        gating = Gating("sigmoid", renormalize, n_group, topk_group, True, scale)
        weights, experts = route(scores, topk, gating, bias)
        return weights, experts.int()

    def dsv3_router_gemm(hidden_states, router_weight, output_dtype):
        calls.append(("dsv3_router_gemm", output_dtype))
        return (hidden_states @ router_weight.T).to(output_dtype)

    names = ("vllm.model_executor.layers.fused_moe", "vllm._custom_ops", "vllm.platforms",
             "vllm.model_executor.layers.fused_moe.fused_moe", "vllm.model_executor.layers.fused_moe.config",
             "vllm.model_executor.layers.fused_moe.router.fused_topk_router",
             "vllm.model_executor.layers.fused_moe.activation")  # fmt: skip
    layers, ops, platforms, module, config, router, activations = stub_modules(monkeypatch, *names)
    activations.MoEActivation = types.SimpleNamespace(SWIGLUOAI="swigluoai")
    monkeypatch.setattr(vllm, "_silu_and_mul", silu_and_mul)
    layers.current = None

    @contextmanager
    def override_config(config):
        layers.current, before = config, layers.current
        yield
        layers.current = before

    layers.override_config, layers.get_config = override_config, lambda: layers.current
    module.fused_experts = fused_experts
    module.get_moe_configs = lambda E, N, dtype, block_n=0, block_k=0: (
        TABLE if (E, N, dtype, block_k) in ((8, 48, None, 0), (8, 128, "fp8_w8a8", 128)) else None
    )
    module.get_config_file_name = lambda E, N, dtype, block_shape=None: (
        f"E={E},N={N},device_name=STUB{f',dtype={dtype},block_shape={block_shape}' if dtype else ''}.json"
    )
    module.try_get_optimal_moe_config = lambda w1, w2, top_k, dtype, M, block_shape=None: {
        "BLOCK_SIZE_M": 16, "shape": tuple(w2), **({"dtype": dtype, "block_shape": block_shape} if dtype else {}),
        **({"BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "num_stages": 3} if dtype else {}),
    }  # fmt: skip
    config.fp8_w8a8_moe_quant_config = config.int4_w4a16_moe_quant_config = dict
    config.biased_moe_quant_config = lambda w1_bias, w2_bias: {"w1_bias": w1_bias, "w2_bias": w2_bias}
    router.fused_topk = fused_topk
    ops.grouped_topk, ops.dsv3_router_gemm = grouped_topk, dsv3_router_gemm
    platforms.current_platform = types.SimpleNamespace(is_cuda=lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    return calls


@pytest.mark.parametrize("adapter", [vllm.Vllm(), vllm.VllmTuned()], ids=lambda adapter: adapter.name)
def test_unavailable_says_why_and_what_to_type(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    check = adapter.check(case())
    assert check.status.value == "unavailable"
    assert check.reason.endswith(": python baselines/builds/offline/prune_vllm.py")
    assert "vllm" in check.reason.split(": python")[0]
    assert adapter.search_path() == []


def test_a_tree_for_another_gpu_is_unavailable(stub):
    (trees.FOLDER / "vllm" / "vllm").mkdir(parents=True)
    (trees.FOLDER / "vllm" / "BUILD.json").write_text(json.dumps({"vllm": "0.22.1", "arch": "8.0"}), encoding="utf-8")
    check = vllm.Vllm().check(case())
    assert check.status.value == "unavailable"
    assert "made for compute capability 8.0, this GPU has 9.0" in check.reason
    assert vllm.Vllm().search_path() == [trees.FOLDER / "vllm"]
    assert vllm.Vllm().version() == "0.22.1"


@pytest.mark.parametrize("gating", ["softmax", "softmax_renorm", "sigmoid", "sigmoid_renorm"])
def test_layouts_and_flags(stub, gating):
    adapter, point = vllm.Vllm(), case(gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert stub[-2] == ("fused_topk", 2, point.gate.renormalize, point.gate.scoring)
    assert stub[-1] == ("fused_experts", (8, 96, 64), (8, 64, 48), False, False, None)
    assert adapter.config(point) == "BLOCK_SIZE_M=16 shape=(8, 64, 48) (E=8,N=48,device_name=STUB.json at M=1)"


@pytest.mark.parametrize("facts", NATIVE, ids=str)
def test_native_layers(stub, facts):
    adapter, point = vllm.Vllm(), native(facts)
    assert adapter.answer(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01


def test_a_shared_expert_of_packed_weights_is_unsupported(stub):
    check = vllm.Vllm().answer(native({"shared_ffn": 128}, **FP8))
    assert check.status.value == "unsupported"
    assert check.reason == "quant=fp8_block: run here with SwiGLU experts alone, without biases or a shared expert"


def test_fp8_block_weights_run_as_they_are_with_their_table(stub):
    adapter, point = vllm.Vllm(), case(**FP8)
    assert adapter.answer(point).status.value == "ok"
    assert adapter.activations(point) == "a8"
    assert adapter.activations(case()) == "a16"
    assert 0.008 < error_of(adapter, point) < 0.06
    assert stub[-1] == ("fused_experts", (8, 256, 128), (8, 128, 128), False, False, None)
    assert adapter.config(point) == (
        "BLOCK_SIZE_M=16 shape=(8, 128, 128) dtype=fp8_w8a8 block_shape=[128, 128] BLOCK_SIZE_N=128 BLOCK_SIZE_K=128 "
        "num_stages=3 (E=8,N=128,device_name=STUB,dtype=fp8_w8a8,block_shape=[128, 128].json at M=1)"
    )
    assert adapter.answer(case(quant="mxfp4", hidden_dim=128, ffn_dim=128)).status.value == "unsupported"


@pytest.mark.parametrize("quant", ["int4", "int4_g32"])
def test_int4_weights_run_as_they_are_with_16_bit_activations(stub, quant):
    adapter, point = vllm.Vllm(), case(quant=quant, hidden_dim=128, ffn_dim=256)
    assert adapter.answer(point).status.value == "ok"
    assert adapter.activations(point) == "a16"
    assert error_of(adapter, point) < 0.01
    assert stub[-1] == ("fused_experts", (8, 512, 64), (8, 128, 128), False, False, None)
    assert "shape=(8, 128, 128) dtype=int4_w4a16" in adapter.config(point)
    assert vllm.VllmTuned().answer(point).status.value == "unsupported"


@pytest.mark.parametrize(
    ("gating", "groups", "top_groups", "scale"), [("deepseek_v3", 8, 4, 2.5), ("kimi_k2", 1, 1, 2.827)]
)
def test_native_gating_of_deepseek_and_kimi(stub, gating, groups, top_groups, scale):
    adapter, point = vllm.Vllm(), case(num_experts=32, top_k=4, gating=gating)
    assert adapter.check(point).status.value == "ok"
    assert error_of(adapter, point) < 0.01
    assert stub[-2] == ("grouped_topk", groups, top_groups, 4, True, scale, 1)
    assert adapter.config(point).endswith("(default heuristic)")


@pytest.mark.parametrize(("tokens", "dtype", "own"), [(16, "bf16", True), (17, "bf16", False), (3, "fp16", False)])
def test_router_gemm_of_vllm_where_it_serves(stub, tokens, dtype, own):
    point = case(num_experts=256, hidden_dim=7168, ffn_dim=8, tokens=tokens, dtype=dtype)
    assert error_of(vllm.Vllm(), point) < 0.01
    assert (("dsv3_router_gemm", torch.bfloat16) in stub) is own


def test_tuned_leaves_shapes_with_a_table_alone(stub):
    check = vllm.VllmTuned().check(case())
    assert check.status.value == "unsupported"
    assert "E=8,N=48,device_name=STUB.json" in check.reason
    vllm_tuning.remember(case(), TILE)
    assert vllm.VllmTuned().check(case()).status.value == "ok"


def test_tuned_runs_with_the_fastest_tile_and_remembers_it(stub, monkeypatch):
    timed = []

    def time_us(call, x):
        call(x)
        timed.append(stub[-1][-1])
        return abs(timed[-1]["BLOCK_SIZE_N"] - 64) + timed[-1]["num_stages"] + (timed[-1]["GROUP_SIZE_M"] != 16)

    monkeypatch.setattr(vllm_tuning, "time_us", time_us)
    monkeypatch.setattr(vllm_tuning, "compile_only", nullcontext)
    adapter, point = vllm.VllmTuned(), case(ffn_dim=40)
    assert error_of(adapter, point) < 0.01
    best = stub[-1][-1]
    assert (best["BLOCK_SIZE_N"], best["num_stages"]) == (64, 2)
    first = len(vllm_tuning.first_round(5, 8, 2))
    assert timed[:first] == vllm_tuning.first_round(5, 8, 2)
    assert best in timed[first:]
    assert adapter.config(point).endswith("(tuned now)")
    vllm_tuning._memory.clear()
    timed.clear()
    assert error_of(adapter, point) < 0.01
    assert timed == []
    assert stub[-1][-1] == best
    assert adapter.config(point).endswith("(tuned before)")


def test_tuned_with_fp8_block_tries_vllms_own_tile_too(stub, monkeypatch):
    timed = []

    def time_us(call, x):
        call(x)
        timed.append(stub[-1][-1])
        return 1.0 if "dtype" in timed[-1] and timed[-1]["num_stages"] == 3 else 2.0

    monkeypatch.setattr(vllm_tuning, "time_us", time_us)
    monkeypatch.setattr(vllm_tuning, "compile_only", nullcontext)
    adapter, point = vllm.VllmTuned(), case(**FP8)
    assert adapter.answer(point).status.value == "ok"
    error_of(adapter, point)
    first = vllm_tuning.first_round(5, 8, 2, "fp8_block")
    assert timed[: len(first)] == first
    own = timed[len(first)]
    assert own["dtype"] == "fp8_w8a8"
    assert stub[-1][-1] == own
    assert vllm_tuning.known(point) == own
    assert vllm_tuning.known(case(hidden_dim=128, ffn_dim=128)) is None


def test_a_search_ends_after_its_time_with_the_fastest_so_far(stub, monkeypatch):
    timed = []

    def time_us(call, x):
        call(x)
        timed.append(stub[-1][-1])
        return float(len(timed))

    monkeypatch.setattr(vllm_tuning, "time_us", time_us)
    monkeypatch.setattr(vllm_tuning, "compile_only", nullcontext)
    monkeypatch.setattr(vllm_tuning, "MOST_S", -1.0)
    adapter, point = vllm.VllmTuned(), case(ffn_dim=40)
    assert error_of(adapter, point) < 0.01
    assert timed == [vllm_tuning.known(point)] == vllm_tuning.first_round(5, 8, 2)[:1]


def test_tiles_that_another_process_has_written_meanwhile_stay(stub):
    vllm_tuning.remember(case(), TILE)
    elsewhere = json.loads(vllm_tuning.path().read_text(encoding="utf-8"))
    elsewhere["tiles"]["E=1"] = {"8": TILE}
    vllm_tuning.path().write_text(json.dumps(elsewhere), encoding="utf-8")
    vllm_tuning.remember(case(tokens=9), TILE)
    kept = json.loads(vllm_tuning.path().read_text(encoding="utf-8"))["tiles"]
    assert kept["E=1"] == {"8": TILE}
    assert sorted(map(len, kept.values())) == [1, 2]


def test_no_tile_that_runs_is_an_error(stub, monkeypatch):
    monkeypatch.setattr(vllm_tuning, "time_us", lambda call, x: float("inf"))
    monkeypatch.setattr(vllm_tuning, "compile_only", nullcontext)
    point = case(ffn_dim=40)
    with pytest.raises(RuntimeError, match=r"none of \d+ tiles"):
        vllm.VllmTuned().build(point, Weights(point, "cpu"))


@pytest.mark.parametrize("quant", ["none", "fp8_block"])
@pytest.mark.parametrize("shape", [(1, 256, 8), (32, 256, 8), (512, 256, 8), (512, 8, 2), (8192, 8, 2), (8192, 1, 1)])
def test_tiles_lie_in_vllms_space_and_suit_the_load(shape, quant):
    tokens, num_experts, top_k = shape
    first = vllm_tuning.first_round(*shape, quant)
    tiles = first + [other for tile in first for other in vllm_tuning.second_round(tile, quant)]
    space = {"BLOCK_SIZE_M": vllm_tuning.BLOCK_M, "BLOCK_SIZE_N": vllm_tuning.BLOCK_N,
             "BLOCK_SIZE_K": vllm_tuning.BLOCK_K[quant], "GROUP_SIZE_M": vllm_tuning.GROUP_M,
             "num_warps": vllm_tuning.WARPS, "num_stages": vllm_tuning.STAGES}  # fmt: skip
    assert all(tile[name] in allowed for tile in tiles for name, allowed in space.items())
    assert 0 < len(first) <= 24
    rows = tokens * top_k / min(num_experts, tokens * top_k)
    assert min(tile["BLOCK_SIZE_M"] for tile in first) >= min(rows, 256)
    assert all(
        vllm_tuning.shared_bytes(*(tile[f"BLOCK_SIZE_{axis}"] for axis in "MNK"), tile["num_stages"], quant)
        <= 227 * 1024
        for tile in tiles
    )


def test_tuned_tiles_of_another_version_are_left_aside():
    vllm_tuning.remember(case(), TILE)
    file = vllm_tuning.path()
    assert vllm_tuning.known(case()) == TILE
    assert vllm_tuning.known(case(skew=1.2, seed=3, dtype="fp16")) == TILE
    assert vllm_tuning.known(case(tokens=6)) is None
    file.write_text(file.read_text(encoding="utf-8").replace('"0.22.1"', '"0.1.0"'), encoding="utf-8")
    vllm_tuning._memory.clear()
    assert vllm_tuning.known(case()) is None


def test_compile_only_compiles_and_launches_nothing(stub):
    pytest.importorskip("triton.runtime._async_compile")
    module = sys.modules["vllm.model_executor.layers.fused_moe.fused_moe"]
    warmed = []
    kernel = module.fused_moe_kernel = types.SimpleNamespace(warmup=lambda *a, grid, **k: warmed.append((a, grid, k)))
    with vllm_tuning.compile_only():
        module.fused_moe_kernel[(3,)](1, 2, BLOCK=4)
    assert warmed == [((1, 2), (3,), {"BLOCK": 4})]
    assert module.fused_moe_kernel is kernel


PEERS = ROOT / ".peers" / "vllm"


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
