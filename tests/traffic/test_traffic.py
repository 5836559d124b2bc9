"""The closed form of the pipelines' traffic against counts in the interpreter, and against figures made by hand."""

import os

import numpy as np
import pytest
from modelled import ACTIVATIONS, METADATA, WEIGHTS, saving

from tritonmoe_bench.experiments.interpreter import repair
from tritonmoe_bench.experiments.table import columns
from tritonmoe_bench.experiments.traffic import rows as traffic
from tritonmoe_bench.experiments.traffic.launches import LAUNCHES
from tritonmoe_bench.experiments.traffic.measure import Traffic
from tritonmoe_bench.experiments.traffic.model_paper import PIPELINES, Bytes, pipeline_traffic, total
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.routing import draw_routing
from tritonmoe_bench.kernels import GemmTile, Tiles

interpreted = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="counts in the interpreter")

UNEQUAL = Tiles(GemmTile(32, 128, 4, 1), GemmTile(64, 32, 4, 1), GemmTile(128, 64, 4, 1))
TINY = Case("tiny", 8, 2, 128, 256, tokens=48)
MIXTRAL = Case("mixtral", 8, 2, 4096, 14336, tokens=512)
QWEN2 = Case("qwen2_paper", 64, 4, 3584, 2560, tokens=512)
COUNTED = {
    "tiny": (TINY, traffic.TILES),
    "tiny_fp16_skewed": (Case("tiny", 8, 2, 128, 256, tokens=150, skew=1.5, dtype="fp16"), UNEQUAL),
    "one_token": (Case("tiny", 8, 2, 128, 256, tokens=1), UNEQUAL),
    "nothing_divides": (Case("odd", 5, 3, 100, 90, tokens=70, skew=1.2, gating="sigmoid_renorm"), UNEQUAL),
    "only_ffn_divides": (Case("odd", 6, 1, 72, 256, tokens=65, dtype="fp16"), traffic.TILES),
    "only_hidden_divides": (Case("odd", 4, 4, 128, 200, tokens=33), UNEQUAL),
    "one_expert_has_all": (Case("odd", 3, 1, 64, 48, tokens=130, skew=8.0), UNEQUAL),
    "many_experts": (Case("odd", 40, 2, 48, 32, tokens=30, skew=0.6), traffic.TILES),
    "two_columns_of_a_pass": (Case("odd", 2, 1, 8200, 16, tokens=3), Tiles(*[GemmTile(256, 256, 4, 1)] * 3)),
}


@interpreted
@pytest.mark.parametrize("implementation", PIPELINES)
@pytest.mark.parametrize("name", COUNTED)
def test_model_agrees_with_the_count_to_the_byte(name, implementation):
    case, tiles = COUNTED[name]
    modelled = pipeline_traffic(implementation, case, draw_routing(case).counts, tiles, on_gpu=False)
    counted = traffic.counted_traffic(case, implementation, tiles)
    differing = {key for key in {*modelled, *counted} if modelled.get(key) != counted.get(key)}
    assert not differing, {key: (modelled.get(key), counted.get(key)) for key in differing}


def test_by_hand():
    # Experts 0 and 2 of 4 have 65 and 7 slots: 2 + 1 row blocks, of which each reads its expert's weights.
    case = Case("hand", 4, 1, 128, 256, tokens=72)
    tiles = Tiles(GemmTile(64, 64, 4, 1), GemmTile(128, 64, 4, 1), GemmTile(64, 64, 4, 1))
    fused = pipeline_traffic("paper_fused", case, [65, 0, 7, 0], tiles)
    rows, one = 72 * 128 * 2, 256 * 128 * 2
    assert fused["gate_up", "permuted"] == Bytes(read=4 * rows, unique_read=rows)
    assert fused["gate_up", "gate_up_weights"] == Bytes(read=3 * 2 * one, unique_read=2 * 2 * one)
    assert fused["gate_up", "intermediate"] == Bytes(write=72 * 256 * 2, unique_write=72 * 256 * 2)
    assert fused["down", "down_weights"] == Bytes(read=3 * one, unique_read=2 * one)
    assert fused["down", "intermediate"] == Bytes(read=2 * 72 * 256 * 2, unique_read=72 * 256 * 2)
    unfused = pipeline_traffic("paper_unfused", case, [65, 0, 7, 0], tiles)
    assert unfused["gate", "permuted"] == unfused["up", "permuted"] == Bytes(read=2 * rows, unique_read=rows)
    assert unfused["up", "up_weights"] == Bytes(read=3 * one, unique_read=2 * one)
    assert ("gate_up", "permuted") not in unfused


@pytest.mark.parametrize("implementation", PIPELINES)
@pytest.mark.parametrize("case", [TINY, MIXTRAL, QWEN2], ids=str)
def test_the_ends_and_active_weights_are_the_compulsory_bytes(case, implementation):
    routing = draw_routing(case)
    table = pipeline_traffic(implementation, case, routing.counts, traffic.TILES)
    ends = table["router", "x"].unique_read + table["unpermute_combine", "output"].unique_write
    assert total(table, WEIGHTS).unique_read + ends == case.min_bytes(routing.active_experts)
    assert {tensor for _, tensor in table} <= {*WEIGHTS, *ACTIVATIONS, *METADATA}
    assert all(seen.read >= seen.unique_read and seen.write >= seen.unique_write for seen in table.values())


def test_savings_by_hand():
    # In elements a slot, unfused. ffn: gate and up written and read, intermediate written and read. hidden: permuted
    # written once and read twice, expert_out written and read; x read twice and the output written, once a token.
    for case in (MIXTRAL, QWEN2):
        hidden, ffn = case.hidden_dim, case.ffn_dim
        unfused = 6 * ffn + 5 * hidden + 3 * hidden / case.top_k
        # Fused neither writes nor reads gate and up, and reads permuted once.
        expected = (4 * ffn + hidden) / unfused
        assert saving(case, draw_routing(case).counts, traffic.TILES, "activations") == pytest.approx(expected)


def test_weights_drown_the_saving_at_the_papers_batch():
    counts = draw_routing(MIXTRAL).counts
    by = {name: saving(MIXTRAL, counts, traffic.TILES, name) for name in ("activations", "unique", "issued")}
    assert by["activations"] > 0.35 > by["unique"] > by["issued"] > 0


@pytest.mark.parametrize("counts", [[96], [97, 0, 0, 0, 0, 0, 0, 0], [-1, 97, 0, 0, 0, 0, 0, 0]])
def test_counts_must_be_the_cases(counts):
    with pytest.raises(ValueError, match="8 numbers of slots that sum to 96"):
        pipeline_traffic("paper_fused", TINY, np.array(counts), traffic.TILES)


@pytest.mark.parametrize("method", [pytest.param("interpreter", marks=interpreted), "model"])
@pytest.mark.parametrize("implementation", PIPELINES)
def test_rows(implementation, method):
    rows = traffic.traffic_rows(TINY, implementation, method)
    for row in rows:
        columns.validate([{**row, "run_id": "run", "timestamp_utc": "now"}], Traffic.columns)
    assert len({tuple(row[name] for name in Traffic.key) for row in rows}) == len(rows)
    *parts, last = rows
    assert (last["stage"], last["tensor"], last["status"]) == ("total", "all", "ok")
    for column in ("read_bytes", "write_bytes", "unique_read_bytes", "unique_write_bytes"):
        assert last[column] == sum(row[column] for row in parts) > 0
    assert {row["stage"] for row in parts} > {"router", "permute", "down", "unpermute_combine"}


@interpreted
def test_both_methods_give_the_same_rows_on_the_tiny_shape():
    model, counted = (
        [{**row, "method": ""} for row in traffic.traffic_rows(TINY, "paper_fused", method)]
        for method in ("model", "interpreter")
    )
    key = ("stage", "tensor")
    assert sorted(model, key=lambda row: [row[k] for k in key]) == sorted(
        counted, key=lambda row: [row[k] for k in key]
    )


@pytest.mark.parametrize(
    ("case", "implementation", "method", "status", "reason"),
    [
        (TINY, "vllm", "interpreter", "unsupported", "needs an NVIDIA GPU"),
        (TINY, "vllm", "model", "unsupported", "paper_fused, paper_fused_graph, paper_unfused, fast;"),
        (Case("d", 16, 2, 64, 32, 4, gating="deepseek_v3"), "paper_fused", "model", "unsupported", "expert groups"),
        (Case("d", 64, 40, 64, 32, 4), "paper_fused", "model", "unsupported", "top_k=40"),
        pytest.param(MIXTRAL, "paper_fused", "interpreter", "unsupported", "too many for the interpreter",
                     marks=interpreted),
    ],
)  # fmt: skip
def test_what_has_no_figure_is_one_row_with_its_reason(case, implementation, method, status, reason):
    (row,) = traffic.traffic_rows(case, implementation, method)
    columns.validate([{**row, "run_id": "run", "timestamp_utc": "now"}], Traffic.columns)
    assert (row["stage"], row["tensor"], row["status"]) == ("total", "all", status)
    assert reason in row["reason"]
    assert "read_bytes" not in row


@interpreted
def test_another_system_is_counted_by_launch_and_argument():
    *parts, last = traffic.traffic_rows(TINY, "fastvariant_gather", "interpreter")
    for row in parts:
        columns.validate([{**row, "run_id": "run", "timestamp_utc": "now"}], Traffic.columns)
    assert len({(row["stage"], row["tensor"]) for row in parts}) == len(parts)
    launches = sorted({row["stage"] for row in parts})
    assert [int(name.split()[0]) for name in launches] == list(range(1, len(launches) + 1))
    experts = draw_routing(TINY).active_experts * TINY.expert_bytes
    # Whatever its kernels are, the active experts' weights are read, and each token's row of y is written.
    assert last["read_bytes"] >= last["unique_read_bytes"] >= experts
    assert last["unique_write_bytes"] >= 48 * 128 * 2
    assert last["unique_read_bytes"] < 2 * experts


@interpreted
def test_a_system_without_triton_kernels_is_not_counted_as_nothing():
    (row,) = traffic.traffic_rows(TINY, "torch_loop", "interpreter")
    assert (row["status"], row["stage"]) == ("unsupported", "total")
    assert "no Triton kernel" in row["reason"]


def test_interpreter_rows_where_it_is_off(monkeypatch):
    def off() -> None:
        raise RuntimeError("Triton's interpreter is off")

    monkeypatch.setattr(repair, "require", off)
    (row,) = traffic.traffic_rows(TINY, "paper_fused", "interpreter")
    assert (row["status"], row["reason"]) == ("unavailable", "Triton's interpreter is off")


def test_unknown_method():
    with pytest.raises(ValueError, match="method='guess': allowed are model, interpreter"):
        traffic.traffic_rows(TINY, "paper_fused", "guess")


@interpreted
def test_other_launches_than_named_are_an_error(monkeypatch):
    monkeypatch.setitem(LAUNCHES, "paper_fused", LAUNCHES["paper_unfused"])
    with pytest.raises(RuntimeError, match="_fused_gate_up_kernel"):
        traffic.counted_traffic(TINY, "paper_fused", traffic.TILES)
