"""`fast_moe` over packed weights: the reference over the unpacked ones, errors, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, quantize_fp8, relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import GATINGS, fast_moe
from tritonmoe_bench.kernels.fast import e4m3
from tritonmoe_bench.kernels.fast.tile_types import FastTile, FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.formats.int4 import Int4
from tritonmoe_bench.kernels.target import Target, target_of

HAS_FP8 = not torch.cuda.is_available() or target_of(torch.device("cuda")).has_fp8
WAYS = ["a16", pytest.param("a8", marks=pytest.mark.skipif(not HAS_FP8, reason="needs fp8 units"))]


def layer(device, tokens, dtype="bf16", gating="softmax", **changes):
    fields = {"model": "t", "num_experts": 8, "top_k": 2, "hidden_dim": 256, "ffn_dim": 128, **changes}
    case = Case(tokens=tokens, dtype=dtype, gating=gating, quant="fp8_block", **fields)
    made = Weights(case, device)
    arguments = (made.router(), made.packed_gate_up(), made.packed_down(), case.top_k, case.gate)
    return case, made, activations(case, draw_routing(case), device), arguments


def allowed(case, made, x, way):
    """The reference, and the error allowed: 1.5 x PyTorch's own in 16 bits, 1.2 x the emulation's in 8."""
    arguments = (x, made.router(), made.expert, case.top_k, case.gate, made.correction_bias())
    exact = moe_forward(*arguments)
    if way == "a8":
        return exact, 1.2 * relative_error(moe_forward(*arguments, quantize=quantize_fp8), exact)
    return exact, 1.5 * relative_error(moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype]), exact)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("tokens", [1, 7, 130])
def test_the_layer_is_right(device, tokens, dtype, way):
    case, made, x, arguments = layer(device, tokens, dtype, skew=1.2)
    y = fast_moe(x, *arguments, activations=way)
    exact, error = allowed(case, made, x, way)
    assert y.dtype == x.dtype
    assert relative_error(y, exact) <= error


@pytest.mark.parametrize("gating", sorted(GATINGS))
def test_every_gating(device, gating):
    case, made, x, arguments = layer(device, 9, gating=gating, num_experts=64, top_k=6, hidden_dim=128)
    y = fast_moe(x, *arguments, correction_bias=made.correction_bias())
    exact, error = allowed(case, made, x, "a8" if HAS_FP8 and x.is_cuda else "a16")
    assert relative_error(y, exact) <= error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block_m", [16, 64, 128, 160])
@pytest.mark.parametrize("swap", [True, False])
def test_every_height_of_tile(device, way, block_m, swap):
    case, made, x, arguments = layer(device, 150, num_experts=2, top_k=1, skew=1.0)
    tile = FastTile(128, 128, 8, 2, 128, 2, swap=swap, small_swap=swap)
    y = fast_moe(x, *arguments, tiles=FastTiles(block_m, tile, tile), activations=way)
    exact, error = allowed(case, made, x, way)
    assert relative_error(y, exact) <= error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("hidden", "ffn"), [(512, 256), (384, 128)], ids=["whole steps", "half a step is left"])
def test_steps_of_two_blocks(device, way, hidden, ffn):
    case, made, x, arguments = layer(device, 20, hidden_dim=hidden, ffn_dim=ffn)
    tile = FastTile(128, 256, 4, 2, 256, 2, swap=True, small_swap=True)
    exact, error = allowed(case, made, x, way)
    assert relative_error(fast_moe(x, *arguments, activations=way, tiles=FastTiles(16, tile, tile)), exact) <= error


@pytest.mark.parametrize("step", [128, 256])
@pytest.mark.parametrize(("hidden", "ffn"), [(512, 256), (384, 128)], ids=["whole steps", "half a step is left"])
def test_the_output_centric_path_with_steps_in_flight(device, step, hidden, ffn):
    case, made, x, arguments = layer(device, 3, num_experts=5, top_k=3, hidden_dim=hidden, ffn_dim=ffn)
    exact, error = allowed(case, made, x, "a16")
    tiles = FewTiles(FewTile(32, step, 4, 3), FewTile(64, step, 4))
    assert relative_error(fast_moe(x, *arguments, tiles=tiles), exact) <= error


def test_bits_in_place_of_numbers_give_the_same(device, monkeypatch):
    """What a GPU without fp8 units does."""
    _, _, x, arguments = layer(device, 5)
    y = fast_moe(x, *arguments, activations="a16")
    monkeypatch.setattr(e4m3, "target_of", lambda device: Target(100 * 1024, 8))
    assert torch.equal(fast_moe(x, *arguments, activations="a16"), y)


def test_a_second_call_is_bitwise_the_same(device):
    _, _, x, arguments = layer(device, 33)
    assert torch.equal(fast_moe(x, *arguments), fast_moe(x, *arguments))


def test_what_it_refuses(device):
    _, _, x, (router, gate_up, down, top_k, gating) = layer(device, 3)
    with pytest.raises(TypeError, match="down must be packed as fp8_block, mxfp4, int4, got Tensor"):
        fast_moe(x, router, gate_up, down.unpack(), top_k, gating)
    with pytest.raises(TypeError, match="gate_up is packed as int4 and down as fp8_block: both must be the same"):
        fast_moe(x, router, Int4.pack(gate_up.unpack()), down, top_k, gating)
    with pytest.raises(ValueError, match=r"gate_up must have shape \[8, 256, 256\], got \[8, 256, 128\]"):
        fast_moe(x, router, down, down, top_k, gating)
    with pytest.raises(ValueError, match="activations='a4': allowed are 'a8' and 'a16'"):
        fast_moe(x, router, gate_up, down, top_k, gating, activations="a4")
    with pytest.raises(ValueError, match="top_k=9"):
        fast_moe(x, router, gate_up, down, 9, gating)


@pytest.mark.parametrize("name", ["gate_up", "down"])
def test_values_and_scales_that_are_not_of_each_other(name, device):
    _, _, x, (router, gate_up, down, top_k, gating) = layer(device, 3)
    weights = {"gate_up": gate_up, "down": down}
    good = weights[name]
    experts, rows, columns = (size // by for size, by in zip(good.shape, (1, 128, 128)))

    def refused(error, message, **changes):
        with pytest.raises(error, match=f"^{name}.{message}"):
            fast_moe(x, router, **weights | {name: replace(good, **changes)}, top_k=top_k, gating=gating)

    wanted = rf"scales must have shape \[{experts}, {rows}, {columns}\], got"
    refused(ValueError, wanted, scales=good.scales[:, :1, :1].contiguous())
    refused(ValueError, wanted, scales=good.scales[:-1])
    refused(ValueError, wanted, scales=good.scales.flatten())
    refused(ValueError, wanted, scales=good.scales.repeat_interleave(128, 1))
    refused(TypeError, "scales must be torch.float32, got torch.bfloat16", scales=good.scales.bfloat16())
    refused(TypeError, "values must be torch.float8_e4m3fn, got torch.uint8", values=good.raw())
    refused(
        TypeError, "values must be torch.float8_e4m3fn, got torch.float8_e5m2", values=good.values.to(torch.float8_e5m2)
    )


@pytest.mark.parametrize(("gating", "backend"), [("softmax", "eager"), ("deepseek_v3", "aot_eager")])
def test_a_compiled_layer_gives_the_eager_numbers(device, gating, backend):
    torch.compiler.reset()
    _, made, x, arguments = layer(device, 5, gating=gating, num_experts=64, top_k=6, hidden_dim=128)
    bias = made.correction_bias()
    compiled = torch.compile(lambda x: fast_moe(x, *arguments, correction_bias=bias), fullgraph=True, backend=backend)
    assert torch.equal(compiled(x), fast_moe(x, *arguments, correction_bias=bias))
    torch.compiler.reset()


def test_the_operator_is_what_pytorch_asks_of_one(device):
    _, _, x, (router, gate_up, down, top_k, _) = layer(device, 3)
    arguments = (x, router, gate_up.raw(), down.raw(), top_k, "softmax", False, 1, 1, 1.0, None)
    packed = {"gate_up_scales": gate_up.scales, "down_scales": down.scales, "quant": "fp8_block", "activations": "a16"}
    torch.library.opcheck(torch.ops.tritonmoe.fast_moe.default, arguments, packed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_cuda_graph_holds_it(device, tokens):
    _, _, x, arguments = layer(device, tokens)
    expected = fast_moe(x, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fast_moe(x, *arguments)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
