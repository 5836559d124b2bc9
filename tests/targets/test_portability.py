"""The portability matrix: what makes it fail, what it survives, and what it writes."""

import ast
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from claim_rows import finding, texts

from tritonmoe_bench.experiments import checkout, portability
from tritonmoe_bench.experiments.claims import Verdict
from tritonmoe_bench.experiments.reporting.portability import matrix_table, outcomes_table
from tritonmoe_bench.experiments.reporting.texts import claim_texts
from tritonmoe_bench.experiments.table import columns
from tritonmoe_bench.experiments.targets import matrix, record
from tritonmoe_bench.experiments.targets.gpus import TARGETS
from tritonmoe_bench.experiments.targets.matrix import Worker
from tritonmoe_bench.experiments.targets.record import EVERY_TOKENS, SOME_TOKENS
from tritonmoe_bench.experiments.workload.config import load_model, model_names
from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K
from tritonmoe_bench.kernels.fast.choose import heuristic_tiles
from tritonmoe_bench.kernels.fast.tile_types import FastTiles, FewTiles, JoinedTiles
from tritonmoe_bench.kernels.target import Target

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
GEMM = "_grouped_gemm_kernel"
SIZES = ("FFN", "K", "N", "TOP_K")


@pytest.fixture(scope="module", autouse=True)
def cold_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def launches():
    names = ("sm_90", "gfx942")
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: matrix.record(name, brief=True), names)))


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


def changed(launches, target, kernel=GEMM, options=None, **constants):
    """A recorded launch with other tiles: as if a table of tiles had said so."""
    launch = next(launch for launch in launches[target] if launch["kernel"] == kernel)
    data = json.loads(launch["specialization"])
    names = list(data["signature"])
    for (position,), index in zip(data["constant_keys"], range(len(data["constant_keys"]))):
        if names[position] in constants:
            data["constant_vals"][index] = constants[names[position]]
    data["options"] |= options or {}
    return launch | {"specialization": json.dumps(data)}


def test_the_default_is_ok(launches, worker):
    for target, instruction in (("sm_90", "wgmma.mma_async"), ("gfx942", "v_mfma")):
        found = worker.compile(changed(launches, target))
        assert (found["status"], found["reason"]) == ("ok", "")
        assert found["matrix_instruction"] == instruction
        assert found["pipelined"]
        assert 0 < found["shared_bytes"] <= TARGETS[target].shared_bytes


@pytest.mark.parametrize(
    ("target", "options", "tile", "status"),
    [
        ("sm_90", {"num_stages": 4}, {"BLOCK_N": 256, "BLOCK_K": 128}, "too_much_shared"),
        ("gfx942", {}, {"BLOCK_N": 256, "BLOCK_K": 128}, "too_much_shared"),
        ("sm_90", {"num_stages": 2}, {"BLOCK_N": 512, "BLOCK_K": 32}, "spills"),
        ("sm_90", {"num_warps": 2}, {"BLOCK_N": 64}, "misses_matrix_unit"),
        ("sm_90", {}, {"BLOCK_N": 48}, "does_not_compile"),
    ],
)
def test_an_oversized_or_awkward_tile_fails(launches, worker, target, options, tile, status):
    found = worker.compile(changed(launches, target, options=options, **tile))
    assert found["status"] == status, found
    assert found["reason"]


def test_matrix_and_exit_status_carry_a_failure(launches, monkeypatch, tmp_path, capsys):
    bad = changed(launches, "gfx942", BLOCK_N=256, BLOCK_K=128)
    monkeypatch.setattr(matrix, "record", lambda target, brief, systems: [bad])
    assert portability.main(["targets=gfx942", f"out={tmp_path}/p.csv"]) == 1
    assert "1 too_much_shared" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert tuple(frame.columns) == columns.PORTABILITY_COLUMNS
    assert frame["status"].tolist() == ["too_much_shared"]
    assert set(frame["status"]) <= set(columns.PORTABILITY_STATUSES)
    assert frame["kernel"].tolist() == ["grouped_gemm"]
    record = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert record["shared_bytes"] == {name: gpu.shared_bytes for name, gpu in TARGETS.items()}


def test_a_compiler_that_aborts_costs_one_kernel(launches, tmp_path, monkeypatch):
    (tmp_path / "aborting.py").write_text(
        "import os, sys\nprint('LLVM ERROR: cannot select', file=sys.stderr)\nos.abort()\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    good = changed(launches, "gfx942")
    first, second = matrix.compile_all([good | {"module": "aborting"}, good], jobs=1)
    assert first["status"] == "does_not_compile"
    assert "LLVM ERROR: cannot select" in first["reason"]
    assert second["status"] == "ok"


def test_a_recording_that_fails_says_why(monkeypatch):
    failing = [sys.executable, "-c", "raise ValueError('no tiles for this GPU')"]
    monkeypatch.setattr(checkout, "program", lambda module: failing)
    with pytest.raises(RuntimeError, match=r"(?s)sm_80.*no tiles for this GPU"):
        matrix.record("sm_80", brief=True)


def test_features_of_one_vendor_are_launched_there_alone(launches):
    def bulk(launch):
        return any(str(kind).startswith("tensordesc") for kind, _, _ in launch["arguments"].values())

    def dependent(launch):
        return launch["arguments"].get("PDL", (None, None, None))[1]

    assert any(map(bulk, launches["sm_90"]))
    assert any(map(dependent, launches["sm_90"]))
    assert not any(map(bulk, launches["gfx942"]))
    assert not any(map(dependent, launches["gfx942"]))


def test_no_kernel_is_left_out(launches):
    """Of the functions of kernels/ that are compiled by themselves, rather than inlined into others."""
    defined = {
        node.name
        for path in KERNELS.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert defined == {launch["kernel"] for found in launches.values() for launch in found}


def constants(launch):
    def hashable(value):
        return tuple(map(hashable, value)) if isinstance(value, list) else value

    return {name: hashable(value) for name, (kind, value, _) in launch["arguments"].items() if kind == "constexpr"}


def test_every_pipeline_and_awkward_sizes_are_recorded(launches):
    for found in launches.values():
        users = {name for launch in found for name in launch["implementations"]}
        assert {"paper_fused", "paper_unfused", "paper_fused_graph", "fast", "stream"} <= users
        gemms = [constants(launch) for launch in found if launch["kernel"] == GEMM]
        assert any(gemm["K"] % gemm["BLOCK_K"] == 0 != gemm["N"] % gemm["BLOCK_N"] for gemm in gemms), gemms


@pytest.mark.parametrize("name", ["sm_90", "gfx942"])
def test_brief_leaves_no_tile_out(launches, name):
    """Every tile that the heuristic gives any model at any number of tokens is compiled, and no grouped GEMM twice."""
    gpu = TARGETS[name]
    target = Target(gpu.shared_bytes, gpu.capability[0] if gpu.backend == "cuda" else 0)
    chosen = set()
    for model in map(load_model, model_names()):
        shape = (model.num_experts, model.top_k, model.hidden_dim, model.ffn_dim)
        for tokens in (*EVERY_TOKENS, *SOME_TOKENS) if model.name != "tiny" else ():
            tiles = heuristic_tiles(target, *shape, tokens)
            if isinstance(tiles, JoinedTiles):
                up, down = tiles.gate_up, tiles.down
                told = {"UP_N": up.block_n, "UP_STEP": up.step, "UP_STAGES": up.stages, "DOWN_N": down.block_n,
                        "DOWN_STEP": down.step, "DOWN_STAGES": down.stages, "SPLITS": tiles.splits,
                        "num_warps": tiles.num_warps}  # fmt: skip
                chosen |= {("_joined_kernel", None, *sorted((told | {"HEIGHT": 16 if tokens <= 16 else 32}).items()))}
                continue
            if isinstance(tiles, FastTiles) and tiles.one_grid:
                up, down = (tiles.constants(tile) for tile in (tiles.gate_up, tiles.down))
                told = {f"{part}_{key}": constants[name] for part, constants in (("UP", up), ("DOWN", down))
                        for key, name in (("N", "BLOCK_N"), ("BULK", "BULK"), ("LADDER", "LADDER"))}  # fmt: skip
                chosen |= {("_one_grid_kernel", None, *sorted((told | {"num_warps": up["num_warps"]}).items()))}
                continue
            few = "few_" if isinstance(tiles, FewTiles) else ""
            for kernel, tile in (("gate_up", tiles.gate_up), ("down", tiles.down)):
                told = tile.constants() if few else tiles.constants(tile)
                rungs = told.pop("LADDER", (None,))
                chosen |= {(f"_{few}{kernel}_kernel", rung, *sorted(told.items())) for rung in rungs}
    assert len(chosen) >= 4
    gemms = Counter()
    for launch in launches[name]:
        told = constants(launch) | {"num_warps": launch["options"]["num_warps"]}
        rungs = told.get("LADDER", (None,))
        chosen = {
            tile for tile in chosen
            if tile[0] != launch["kernel"] or tile[1] not in rungs or not set(tile[2:]) <= set(told.items())
        }  # fmt: skip
        if launch["kernel"] in ("_gate_up_kernel", "_down_kernel"):
            known = tuple((kind, alignment) for kind, _, alignment in launch["arguments"].values())
            tile = frozenset(item for item in told.items() if item[0] not in SIZES)
            gemms[launch["kernel"], known, tile] += 1
    assert not chosen
    assert set(gemms.values()) == {1}


def test_a_ladder_whose_tiles_are_on_longer_ones_is_left_out_and_no_other():
    def launch(*ladder, kernel="down"):
        return {"kernel": kernel, "arguments": {"LADDER": ("constexpr", ladder, None)} if ladder else {}}

    found = {
        ("down", ("LADDER", 0)): launch("a", "b"), ("down", ("LADDER", 1)): launch("b"),
        ("down", ("LADDER", 2)): launch("c"), ("up", ("LADDER", 3)): launch("b", kernel="up"),
        ("down", ("LADDER", 4)): launch("a", "c"), ("place",): launch(kernel="place"),
    }  # fmt: skip
    kept = record.without_repeated_tiles(found)
    assert list(map(record._ladder, kept)) == [["a", "b"], ["b"], ["a", "c"], []]
    assert [each["kernel"] for each in kept] == ["down", "up", "down", "place"]


def test_registers_and_scratch_of_amd_are_read_from_the_metadata():
    from tritonmoe_bench.experiments.targets.compile import amd_resources

    text = """
        .amdhsa_private_segment_fixed_size 12
    .private_segment_fixed_size: 12
    .sgpr_spill_count: 7
    .vgpr_count:     140
    .vgpr_spill_count: 3
    """
    assert amd_resources(text) == (140, 12)


def test_verdicts_by_the_limits_of_the_target():
    from tritonmoe_bench.experiments.targets.compile import verdict

    def compiled(ttir="", ttgir="", tmem_size=0):
        return SimpleNamespace(asm={"ttir": ttir, "ttgir": ttgir}, metadata=SimpleNamespace(tmem_size=tmem_size))

    fine = {"shared_bytes": 0, "spills": 0, "registers": 32, "matrix_instruction": ""}
    dot = "%c = tt.dot %a, %b, %c : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32>"
    low = dot.replace("-> tensor<64x", "-> tensor<16x")
    on_mma = fine | {"matrix_instruction": "mma.sync"}
    registers = "%t = ttng.warp_group_dot %a, %b, %c {isAsync = true} : tensor<128x16xbf16, #ttg.dot_op<{opIdx = 0}>>"
    shared = "%t = ttng.warp_group_dot %a, %b, %c {isAsync = true} : !ttg.memdesc<128x16xbf16, #shared>"
    wait = "\n%u:2 = ttng.warp_group_dot_wait %t, %b {{pendings = {} : i32}} : tensor<128x64xf32, #mma>"
    for gpu, kernel, found, status in (
        ("sm_90", compiled(), fine, "ok"),
        ("sm_90", compiled(), fine | {"shared_bytes": 227 * 1024 + 1}, "too_much_shared"),
        ("gfx942", compiled(), fine | {"shared_bytes": 64 * 1024 + 1}, "too_much_shared"),
        ("gfx950", compiled(), fine | {"shared_bytes": 64 * 1024 + 1}, "ok"),
        ("sm_100", compiled(tmem_size=1024), fine, "too_much_shared"),
        ("sm_90", compiled(), fine | {"spills": 4}, "spills"),
        ("gfx942", compiled(dot), fine, "misses_matrix_unit"),
        ("sm_90", compiled(dot, dot), on_mma, "misses_matrix_unit"),
        ("sm_90", compiled(low, low), on_mma, "ok"),
        ("sm_80", compiled(dot, dot), on_mma, "ok"),
        ("sm_90", compiled("", registers + wait.format(7)), fine, "overwrites_operand"),
        ("sm_90", compiled("", registers + wait.format(0)), fine, "ok"),
        ("sm_90", compiled("", shared + wait.format(1)), fine, "ok"),
    ):
        assert verdict(kernel, found, TARGETS[gpu])[0] == status, (gpu, found)


def test_the_claim_says_what_was_compiled_for_and_what_was_run_on():
    rows = pd.DataFrame({"kernel": "k", "target": ["sm_80", "gfx942", "sm_90"], "status": ["ok", "ok", "spills"]})
    grid = {"paper_grid": {"passed": 162, "failed": 0, "skipped": 0}}
    tests = {"interpreter": grid | {"ours": {"passed": 900, "failed": 0, "skipped": 0}}, "nvidia-h200": grid}
    portable = finding("portability", tests=tests, portability=rows)
    assert portable.verdict is Verdict.IN_PART
    assert claim_texts(portable).measured == (
        "compiled for A100 (1 of 1 ok), H100/H200 (0 of 1 ok), MI300X (1 of 1 ok); ran on nvidia-h200, "
        "and in the interpreter"
    )
    assert "not run on A100 or MI300X" in claim_texts(portable).sentence
    assert texts("correctness", tests=tests).measured == (
        "162 of 162 pass in the interpreter (and 900 tests of our own); 162 of 162 pass on nvidia-h200"
    )


@pytest.mark.parametrize("name", ["sm_90", "gfx942"])
def test_top_k_is_compiled_at_its_limits_too(launches, name):
    choosing = [constants(launch) for launch in launches[name] if launch["kernel"] == "_top_k_kernel"]
    assert {told["BLOCK_E"] for told in choosing} >= {64, 128, 512, MAX_EXPERTS}
    assert {told["TOP_K"] for told in choosing} >= {2, 8, 10, 22, MAX_TOP_K}


def test_groups_that_are_no_powers_of_two_are_padded(launches):
    choosing = [constants(launch) for launch in launches["sm_90"] if launch["kernel"] == "_top_k_kernel"]
    padded = {(told["NUM_EXPERTS"], told["BLOCK_E"], told["BLOCK_G"]) for told in choosing if told["GROUPS"] == 8}
    assert {(160, 256, 8), (1024, 1024, 8)} <= padded


def test_the_report_counts_configurations_by_kernel_and_target_and_says_where_tests_ran():
    statuses = ["ok", "spills", "too_much_shared", "ok"]
    rows = pd.DataFrame({"kernel": ["b", "a", "a", "a"], "target": ["sm_80", "sm_80", "sm_80", "gfx942"]})
    table = matrix_table(rows.assign(status=statuses))
    assert table.header == ["kernel", "A100 (sm_80)", "MI300X (gfx942)"]
    assert table.rows == [
        ["a", "0 of 2 ok; 1 spills, 1 too much shared", "1 of 1 ok"],
        ["b", "1 of 1 ok", "not launched"],
        ["all", "1 of 3 ok; 1 spills, 1 too much shared", "1 of 1 ok"],
    ]
    assert matrix_table(pd.DataFrame()) is None

    grid = {"passed": 162, "failed": 0, "skipped": 0}
    told = outcomes_table(
        {"nvidia-h200": {"paper_grid": grid, "ours": grid | {"failed": 1}}, "interpreter": {"ours": grid}}, {}
    )
    assert told.rows == [
        ["interpreter", "not recorded", "162 passed", "not recorded"],
        ["nvidia-h200", "162 passed", "162 passed, 1 failed", "not recorded"],
    ]
    assert outcomes_table({}, {}) is None
