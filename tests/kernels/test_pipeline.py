"""The paper's three forwards against the one reference, on plain and awkward shapes and routings."""

import pytest
import torch
from moe_cases import FORMS, make_layer

from tritonmoe_bench.experiments.workload.reference import relative_error
from tritonmoe_bench.kernels import Gating, GemmTile, Tiles, paper_moe, paper_stages
from tritonmoe_bench.kernels.paper import pipeline

SHAPES = {
    "one_token": {"tokens": 1, "experts": 8, "top_k": 2, "hidden": 128, "ffn": 256},
    "odd": {"tokens": 17, "experts": 5, "top_k": 3, "hidden": 727, "ffn": 577},
    "one_expert": {"tokens": 3, "experts": 1, "top_k": 1, "hidden": 64, "ffn": 48},
    "every_expert": {"tokens": 17, "experts": 5, "top_k": 5, "hidden": 40, "ffn": 24},
    "top_16_of_16": {"tokens": 3, "experts": 16, "top_k": 16, "hidden": 48, "ffn": 16},
    "sixty_experts": {"tokens": 33, "experts": 60, "top_k": 4, "hidden": 180, "ffn": 88},
    "blocks": {"tokens": 200, "experts": 4, "top_k": 2, "hidden": 64, "ffn": 96},
    "skewed": {"tokens": 150, "experts": 16, "top_k": 2, "hidden": 64, "ffn": 64, "skew": 2.0},
    "many_experts": {"tokens": 9, "experts": 256, "top_k": 8, "hidden": 256, "ffn": 32},
}
SMALL = {"experts": 8, "top_k": 2, "hidden": 64, "ffn": 48}
form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@form
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, form, dtype, device):
    make_layer(device, **SHAPES[shape], dtype=dtype).assert_right(**form)


@form
@pytest.mark.parametrize("gating", ["softmax_renorm", "sigmoid", "sigmoid_renorm"])
def test_gatings(gating, form, dtype, device):
    make_layer(device, tokens=20, experts=8, top_k=3, hidden=64, ffn=48, dtype=dtype, gating=gating).assert_right(
        **form
    )


@form
def test_all_tokens_on_one_expert(form, dtype, device):
    logits = torch.zeros(130, 8)
    logits[:, 5] = 4.0
    make_layer(device, tokens=130, experts=8, top_k=1, hidden=64, ffn=48, dtype=dtype, logits=logits).assert_right(
        **form
    )


@form
def test_equal_logits_send_every_token_to_the_first_experts(form, dtype, device):
    layer = make_layer(device, tokens=70, **SMALL, dtype=dtype, logits=torch.zeros(70, 8))
    layer.assert_right(**form)


@form
def test_a_forward_is_the_same_every_time(form, dtype, device):
    layer = make_layer(device, tokens=65, **SMALL, dtype=dtype)
    assert torch.equal(layer.forward(**form), layer.forward(**form))


def test_both_schedules_give_the_same_bits(dtype, device):
    layer = make_layer(device, tokens=65, **SMALL, dtype=dtype, skew=1.2)
    assert torch.equal(layer.forward(schedule="host"), layer.forward(schedule="gpu"))


@form
def test_tiles_of_ones_own(form, dtype, device):
    tile = GemmTile(32, 16, 4, 2)
    layer = make_layer(device, tokens=10, experts=4, top_k=2, hidden=72, ffn=56, dtype=dtype)
    layer.assert_right(tiles=Tiles(tile, tile, tile), **form)


@form
def test_the_stages_chain_to_the_forward(form, dtype, device):
    layer = make_layer(device, tokens=30, **SMALL, dtype=dtype)
    stages = paper_stages(layer.x, *layer.parameters, **form)
    assert [name for name, _ in stages] == ["router", "permute", "expert_ffn", "unpermute_combine"]
    for _, thunk in stages[:-1]:
        thunk()
    y = layer.forward(**form)
    assert torch.equal(stages[-1][1]()[0], y)
    assert torch.equal(stages[-1][1]()[0], y)


def test_gating_is_plain_softmax_if_none_is_given(device):
    layer = make_layer(device, tokens=4, experts=4, top_k=2, hidden=32, ffn=16)
    arguments = layer.x, layer.weights.router(), layer.weights.gate_up(), layer.weights.down(), 2
    assert torch.equal(paper_moe(*arguments), paper_moe(*arguments, Gating()))


def test_x_may_have_rows_that_lie_apart(device):
    layer = make_layer(device, tokens=6, experts=4, top_k=2, hidden=32, ffn=16)
    y = layer.forward()
    layer.x = torch.nn.functional.pad(layer.x, (0, 8))[:, :32]
    assert torch.equal(layer.forward(), y)


def test_the_gpu_schedule_never_asks_the_host(device, monkeypatch):
    def refuse(*_):
        raise AssertionError("the host was asked for what the GPU decides")

    layer = make_layer(device, tokens=30, **SMALL)
    monkeypatch.setattr(pipeline, "list_blocks_on_host", refuse)
    monkeypatch.setattr(torch.Tensor, "item", refuse)
    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    layer.forward(schedule="gpu")
    with pytest.raises(AssertionError, match="the host was asked"):
        layer.forward(schedule="host")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_cuda_graph_follows_the_routing(dtype, device):
    layer = make_layer(device, tokens=130, experts=16, top_k=4, hidden=256, ffn=192, dtype=dtype)
    layer.forward(schedule="gpu")
    static = layer.x.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = paper_moe(static, *layer.parameters, schedule="gpu")
    for skew in (0.0, 2.0):
        other = make_layer(device, tokens=130, experts=16, top_k=4, hidden=256, ffn=192, dtype=dtype, skew=skew)
        static.copy_(other.x)
        graph.replay()
        assert torch.equal(y, paper_moe(other.x, *layer.parameters, schedule="gpu"))
        assert relative_error(y, other.reference(torch.float32)) < 0.05
