"""The forward of `fast` against the one reference: shapes, gatings, every kind of routing, 1 to 512 tokens."""

from itertools import cycle

import pytest
import torch
from fast_cases import SMALL_FEW, SMALL_JOINED, Spy, logits_that_choose, make_tiles, one_expert_each
from moe_cases import assert_accurate, make_layer, random

from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.kernels import paper_moe
from tritonmoe_bench.kernels.fast import blocks, forward, gemm, logits, routing
from tritonmoe_bench.kernels.fast.layer import fast_moe
from tritonmoe_bench.kernels.fast.logits import FEW_TOKENS, SPLIT_TOKENS
from tritonmoe_bench.kernels.gating import GATINGS, Gating

SHAPES = {
    "one_token": {"tokens": 1, "experts": 8, "top_k": 2, "hidden": 128, "ffn": 256},
    "one_expert": {"tokens": 3, "experts": 1, "top_k": 1, "hidden": 77, "ffn": 35},
    "one_of_everything": {"tokens": 1, "experts": 1, "top_k": 1, "hidden": 1, "ffn": 1},
    "every_expert": {"tokens": 17, "experts": 5, "top_k": 5, "hidden": 40, "ffn": 24},
    "odd": {"tokens": 17, "experts": 5, "top_k": 3, "hidden": 727, "ffn": 577},
    "top_8": {"tokens": 7, "experts": 20, "top_k": 8, "hidden": 77, "ffn": 35},
    "top_16_of_16": {"tokens": 3, "experts": 16, "top_k": 16, "hidden": 48, "ffn": 16},
    "odd_number_of_many_experts": {"tokens": 5, "experts": 131, "top_k": 7, "hidden": 136, "ffn": 16},
    "skewed": {"tokens": 150, "experts": 8, "top_k": 2, "hidden": 64, "ffn": 64, "skew": 2.0},
    "many_tokens": {"tokens": 512, "experts": 4, "top_k": 2, "hidden": 40, "ffn": 24, "skew": 1.2},
}
GRID = {"experts": 5, "top_k": 3, "hidden": 77, "ffn": 35}
LEFT = make_tiles(64, swap=True)
"""With the path of tiles taken at every number of tokens, on a GPU too."""


@pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, cycle(["bf16", "fp16"]))))
def test_shapes(shape, dtype, device):
    make_layer(device, **SHAPES[shape], dtype=dtype).assert_fast_right()


@pytest.mark.parametrize(
    ("tokens", "dtype"),
    list(zip([1, 2, FEW_TOKENS, FEW_TOKENS + 1, 33, SPLIT_TOKENS, SPLIT_TOKENS + 1], cycle(["bf16", "fp16"]))),
)
def test_both_sides_of_every_choice_by_tokens(tokens, dtype, device, monkeypatch):
    """Logits by one of two kernels or by PyTorch; then always the same five launches."""
    names = []
    for module in (logits, routing, blocks, gemm, forward):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Spy(getattr(module, name), names))
    make_layer(device, **GRID, tokens=tokens, dtype=dtype).assert_fast_right(tiles=LEFT)
    first = [] if tokens > SPLIT_TOKENS else ["_few_logits_kernel" if tokens <= FEW_TOKENS else "_split_logits_kernel"]
    assert names == [*first, "_top_k_kernel", "_place_kernel", "_gate_up_kernel", "_down_kernel", "_combine_kernel"]


@pytest.mark.parametrize(("gating", "dtype"), list(zip(GATINGS, cycle(["bf16", "fp16"]))))
def test_gatings(gating, dtype, device):
    layer = make_layer(device, tokens=40, experts=16, top_k=6, hidden=72, ffn=40, dtype=dtype, gating=gating)
    layer.assert_fast_right()


@pytest.mark.parametrize("block_m", [16, 64, 144, 192])
def test_hot_and_empty_experts_at_every_kind_of_height(block_m, dtype, device):
    """A hot expert of several blocks, others of a row or two, and empty ones, also the first and the last."""
    logits = one_expert_each([0, 1, 0, 217, 2, 17, 0])
    layer = make_layer(device, tokens=len(logits), experts=7, top_k=1, hidden=80, ffn=40, dtype=dtype, logits=logits)
    layer.assert_fast_right(tiles=make_tiles(block_m, swap=block_m > 64))


def test_an_output_beyond_float16_that_its_weight_brings_back_into_range(device):
    """The second expert gives 131072, with the weight 0.12: every path gives the sum, to the precision of float16."""
    half = {"dtype": torch.float16, "device": device}
    x, router = torch.zeros(5, 32, **half), torch.zeros(4, 32, **half)
    x[:, 0], x[:, 1] = 1, 4
    router[:2, 0] = torch.tensor([3, 1], **half)
    gate_up, down = torch.zeros(4, 32, 32, **half), torch.zeros(4, 32, 16, **half)
    gate_up[:, :, 1], down[0], down[1] = 8, 0.5, 8
    layer = x, router, gate_up, down, 2
    exact = moe_forward(x, router, lambda e: (gate_up[e, :16], gate_up[e, 16:], down[e]), 2, Gating())[0, 0].item()
    assert 20990 < exact < 21000
    outputs = [
        fast_moe(*layer, tiles=tiles) for tiles in (make_tiles(16), make_tiles(160, swap=True), SMALL_FEW, SMALL_JOINED)
    ]
    outputs += [paper_moe(*layer, fused=fused, schedule=by) for fused in (True, False) for by in ("host", "gpu")]
    for y in outputs:
        assert y.flatten().tolist() == pytest.approx([exact] * y.numel(), rel=2**-10)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_token_whose_sigmoid_scores_all_underflow_gets_zeros(scale, device):
    """Each weight is 0 / (0 + 1e-20), as in the models' own code; the other token is not touched by it."""
    half = {"dtype": torch.float16, "device": device}
    x, router = torch.zeros(2, 32, **half), torch.zeros(4, 32, **half)
    x[0, 0], x[:, 1], router[:, 0] = 200, 1, -1  # logits of -200
    layer = x, router, torch.ones(4, 32, 32, **half), torch.ones(4, 32, 16, **half), 2
    gating = Gating("sigmoid", renormalize=True, scale=scale)
    exact = moe_forward(*layer[:2], lambda e: (layer[2][e, :16], layer[2][e, 16:], layer[3][e]), 2, gating)
    assert exact[0].tolist() == [0.0] * 32
    outputs = [fast_moe(*layer, gating, tiles=tiles) for tiles in (LEFT, SMALL_FEW, SMALL_JOINED)] + [
        paper_moe(*layer, gating)
    ]
    for y in outputs:
        assert y[0].tolist() == [0.0] * 32
        torch.testing.assert_close(y[1].float(), exact[1], rtol=2**-10, atol=0)


@pytest.mark.parametrize("tokens", [1, 3, 40, 150])
def test_a_float32_router_chooses_as_float32(tokens, dtype, device):
    """The third expert is the best by less than rounding the router to 16 bits leaves."""
    layer = make_layer(device, tokens=tokens, experts=4, top_k=1, hidden=64, ffn=16, dtype=dtype)
    _, gate_up, down, *rest = layer.parameters
    layer.x = random(tokens, 64, dtype=dtype, device=device).abs()
    router = torch.full((4, 64), 0.125, device=device)
    router[2] *= 1 + 2**-13
    exact, rounded = (moe_forward(layer.x, kind, layer.expert, *rest) for kind in (router, router.to(layer.x.dtype)))
    assert relative_error(rounded, exact) > 0.5
    outputs = [fast_moe(layer.x, router, gate_up, down, *rest, tiles=tiles) for tiles in (LEFT, SMALL_FEW)]
    for y in (*outputs, paper_moe(layer.x, router, gate_up, down, *rest)):
        assert relative_error(y, exact) < 0.01


@pytest.mark.parametrize("tokens", [7, 130])
def test_all_tokens_on_the_last_experts(tokens, device):
    logits = logits_that_choose(torch.tensor([[7, 6]]).expand(tokens, 2), 8)
    make_layer(device, tokens=tokens, experts=8, top_k=2, hidden=64, ffn=48, logits=logits).assert_fast_right()


@pytest.mark.parametrize("tokens", [2, 70])
def test_equal_logits_send_every_token_to_the_first_experts(tokens, device):
    layer = make_layer(device, tokens=tokens, experts=8, top_k=2, hidden=64, ffn=48, logits=torch.zeros(tokens, 8))
    layer.assert_fast_right()


@pytest.mark.parametrize("tokens", [3, 20, 130])
def test_a_forward_is_the_same_every_time(tokens, device):
    layer = make_layer(device, **GRID, tokens=tokens)
    assert torch.equal(layer.fast(), layer.fast())


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tokens", [7, 130])
def test_a_token_that_is_no_number_leaves_the_others_right(tokens, scoring, device):
    layer = make_layer(device, tokens=tokens, **GRID, gating=scoring)
    exact, own = layer.reference(torch.float32), layer.reference(layer.x.dtype)
    layer.x[4] = float("nan")
    y = layer.fast()
    others = torch.arange(tokens, device=device) != 4
    assert y[4].isnan().all()
    assert_accurate(y[others], exact[others], own[others], 1.5)


def test_gating_is_plain_softmax_if_none_is_given(device):
    layer = make_layer(device, tokens=4, experts=4, top_k=2, hidden=32, ffn=16)
    arguments = layer.x, layer.weights.router(), layer.weights.gate_up(), layer.weights.down(), 2
    assert torch.equal(fast_moe(*arguments), fast_moe(*arguments, Gating()))


@pytest.mark.parametrize("tokens", [6, 150])
def test_x_may_have_rows_that_lie_apart(tokens, device):
    layer = make_layer(device, tokens=tokens, experts=4, top_k=2, hidden=32, ffn=16)
    y = layer.fast(tiles=LEFT)
    layer.x = torch.nn.functional.pad(layer.x, (0, 8))[:, :32]
    assert torch.equal(layer.fast(tiles=LEFT), y)


@pytest.mark.parametrize("tokens", [1, 3, 60])
def test_the_host_is_never_asked(tokens, device, monkeypatch):
    def refuse(*_):
        raise AssertionError("the host was asked for what the GPU decides")

    layer = make_layer(device, **GRID, tokens=tokens)
    for name in ("item", "tolist", "cpu", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    layer.fast()
