"""`vllm_tuned` over the same stub: when it searches, what it remembers, and which tiles it tries."""

import json
import sys
import types
from contextlib import nullcontext

import pytest
from tiny_layer import case, error_of
from vllm_stub import FP8

from tritonmoe_bench.baselines import vllm
from tritonmoe_bench.baselines.parts import vllm_tuning
from tritonmoe_bench.experiments.workload.weights import Weights

TILE = {"BLOCK_SIZE_M": 32, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}
pytestmark = pytest.mark.usefixtures("no_vllm_built")


def test_tuned_leaves_shapes_with_a_table_alone(vllm_calls):
    check = vllm.VllmTuned().check(case())
    assert check.status.value == "unsupported"
    assert "E=8,N=48,device_name=STUB.json" in check.reason
    vllm_tuning.remember(case(), TILE)
    assert vllm.VllmTuned().check(case()).status.value == "ok"


def test_tuned_runs_with_the_fastest_tile_and_remembers_it(vllm_calls, monkeypatch):
    timed = []

    def time_us(call, x):
        call(x)
        timed.append(vllm_calls[-1][-1])
        return abs(timed[-1]["BLOCK_SIZE_N"] - 64) + timed[-1]["num_stages"] + (timed[-1]["GROUP_SIZE_M"] != 16)

    monkeypatch.setattr(vllm_tuning, "time_us", time_us)
    monkeypatch.setattr(vllm_tuning, "compile_only", nullcontext)
    adapter, point = vllm.VllmTuned(), case(ffn_dim=40)
    assert error_of(adapter, point) < 0.01
    best = vllm_calls[-1][-1]
    assert (best["BLOCK_SIZE_N"], best["num_stages"]) == (64, 2)
    first = len(vllm_tuning.first_round(5, 8, 2))
    assert timed[:first] == vllm_tuning.first_round(5, 8, 2)
    assert best in timed[first:]
    assert adapter.config(point).endswith("(tuned now)")
    vllm_tuning._memory.clear()
    timed.clear()
    assert error_of(adapter, point) < 0.01
    assert timed == []
    assert vllm_calls[-1][-1] == best
    assert adapter.config(point).endswith("(tuned before)")


def test_tuned_with_fp8_block_tries_vllms_own_tile_too(vllm_calls, monkeypatch):
    timed = []

    def time_us(call, x):
        call(x)
        timed.append(vllm_calls[-1][-1])
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
    assert vllm_calls[-1][-1] == own
    assert vllm_tuning.known(point) == own
    assert vllm_tuning.known(case(hidden_dim=128, ffn_dim=128)) is None


def test_a_search_ends_after_its_time_with_the_fastest_so_far(vllm_calls, monkeypatch):
    timed = []

    def time_us(call, x):
        call(x)
        timed.append(vllm_calls[-1][-1])
        return float(len(timed))

    monkeypatch.setattr(vllm_tuning, "time_us", time_us)
    monkeypatch.setattr(vllm_tuning, "compile_only", nullcontext)
    monkeypatch.setattr(vllm_tuning, "MOST_S", -1.0)
    adapter, point = vllm.VllmTuned(), case(ffn_dim=40)
    assert error_of(adapter, point) < 0.01
    assert timed == [vllm_tuning.known(point)] == vllm_tuning.first_round(5, 8, 2)[:1]


def test_tiles_that_another_process_has_written_meanwhile_stay(vllm_calls):
    vllm_tuning.remember(case(), TILE)
    elsewhere = json.loads(vllm_tuning.path().read_text(encoding="utf-8"))
    elsewhere["tiles"]["E=1"] = {"8": TILE}
    vllm_tuning.path().write_text(json.dumps(elsewhere), encoding="utf-8")
    vllm_tuning.remember(case(tokens=9), TILE)
    kept = json.loads(vllm_tuning.path().read_text(encoding="utf-8"))["tiles"]
    assert kept["E=1"] == {"8": TILE}
    assert sorted(map(len, kept.values())) == [1, 2]


def test_no_tile_that_runs_is_an_error(vllm_calls, monkeypatch):
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


def test_compile_only_compiles_and_launches_nothing(vllm_calls):
    pytest.importorskip("triton.runtime._async_compile")
    module = sys.modules["vllm.model_executor.layers.fused_moe.fused_moe"]
    warmed = []
    kernel = module.fused_moe_kernel = types.SimpleNamespace(warmup=lambda *a, grid, **k: warmed.append((a, grid, k)))
    with vllm_tuning.compile_only():
        module.fused_moe_kernel[(3,)](1, 2, BLOCK=4)
    assert warmed == [((1, 2), (3,), {"BLOCK": 4})]
    assert module.fused_moe_kernel is kernel
