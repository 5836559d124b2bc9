"""The paper's pipelines as the harness sees them."""

from pathlib import Path

import pytest
import torch
from moe_cases import assert_accurate

import tritonmoe_bench
from tritonmoe_bench import kernels
from tritonmoe_bench.baselines.paper import PaperFused, PaperFusedGraph, PaperUnfused
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = pytest.mark.parametrize("adapter", [PaperUnfused(), PaperFused(), PaperFusedGraph()], ids=lambda a: a.name)


def tiny(**changes) -> Case:
    return Case(
        **({"model": "tiny", "num_experts": 8, "top_k": 2, "hidden_dim": 64, "ffn_dim": 48, "tokens": 9} | changes)
    )


@ADAPTERS
@pytest.mark.parametrize("gating", ["softmax", "sigmoid_renorm"])
def test_build_makes_the_layer(adapter, gating, dtype, device):
    case = tiny(dtype=dtype, gating=gating)
    weights = Weights(case, device)
    x = activations(case, draw_routing(case), device)
    arguments = (x, weights.router(), weights.expert, case.top_k, case.gate)
    y = adapter.build(case, weights)(x)
    assert_accurate(y, moe_forward(*arguments), moe_forward(*arguments, dtype=x.dtype))


@ADAPTERS
def test_stages_end_in_the_forward_s_output(adapter, device):
    case = tiny()
    weights = Weights(case, device)
    x = activations(case, draw_routing(case), device)
    stages = adapter.stages(case, weights, x)
    assert [name for name, _ in stages] == ["router", "permute", "expert_ffn", "unpermute_combine"]
    assert torch.equal(stages[-1][1]()[0], adapter.build(case, weights)(x))


@ADAPTERS
@pytest.mark.parametrize("gating", ["deepseek_v3", "kimi_k2"])
def test_groups_and_biases_are_unsupported(adapter, gating):
    found = adapter.check(tiny(num_experts=16, gating=gating))
    assert found.status is Status.UNSUPPORTED
    assert gating in found.reason


@ADAPTERS
def test_more_than_the_router_takes_is_unsupported(adapter):
    assert adapter.check(tiny()).status is Status.OK
    assert adapter.check(tiny(num_experts=1100, hidden_dim=1152)).status is Status.UNSUPPORTED
    assert adapter.check(tiny(num_experts=40, top_k=33)).status is Status.UNSUPPORTED


@ADAPTERS
def test_version_is_the_project_s(adapter):
    assert adapter.version() == tritonmoe_bench.__version__


def test_config_names_the_tiles_and_the_side_of_the_schedule(monkeypatch):
    tile, other = kernels.GemmTile(64, 32, 4, 3), kernels.GemmTile(128, 64, 8, 2)
    from tritonmoe_bench.baselines import paper

    monkeypatch.setattr(paper, "_tiles", lambda: kernels.Tiles(tile, other, tile))
    assert PaperFused().config(tiny()) == "gate_up_silu=64x64x32/w4/s3 down=64x64x32/w4/s3 schedule=host"
    assert PaperFusedGraph().config(tiny()).endswith("schedule=gpu")
    assert PaperUnfused().config(tiny()).startswith("gate=64x128x64/w8/s2 up=64x128x64/w8/s2 down=64x64x32/w4/s3")


def test_only_the_schedule_on_the_gpu_can_be_captured():
    assert PaperFusedGraph.host_sync == ""
    assert "host" in PaperFused.host_sync
    assert PaperUnfused.host_sync == PaperFused.host_sync
