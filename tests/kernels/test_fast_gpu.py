"""What of `fast` only a GPU shows: graphs that follow the routing, memory that is used again, overlapping launches,
loops of many steps with loads in flight."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from experts_cases import draw_ids, make_routed
from fast_cases import SMALL_FEW, SMALL_JOINED, make_tiles
from moe_cases import assert_accurate, make_layer, rounded_logits

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.kernels import pdl
from tritonmoe_bench.kernels.fast.logits import FEW_TOKENS, SPLIT_TOKENS, WIDE_TOKENS
from tritonmoe_bench.kernels.target import INTERPRETER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="about CUDA graphs and launches"),
]

SHAPE = {"experts": 16, "top_k": 4, "hidden": 256, "ffn": 192}
MANY_DOWN_PROGRAMS = {"experts": 8, "top_k": 2, "hidden": 4096, "ffn": 64}
"""Few programs compute gate and up, and many down: most multiprocessors have seen nothing of the forward until then."""
SHAPES = {"even": SHAPE, "many_down_programs": MANY_DOWN_PROGRAMS}
TOKENS = [1, FEW_TOKENS, FEW_TOKENS + 1, 32, WIDE_TOKENS, WIDE_TOKENS + 1, SPLIT_TOKENS, SPLIT_TOKENS + 1]
"""The output-centric path, logits by each kernel and by PyTorch, tiles for few, some and many rows."""
DEEP = {
    "long_ffn": {"experts": 4, "top_k": 2, "hidden": 1024, "ffn": 6144},
    "long_hidden": {"experts": 4, "top_k": 2, "hidden": 6144, "ffn": 1024},
    "odd": {"experts": 4, "top_k": 2, "hidden": 1027, "ffn": 771},
}
TILES = {
    "few": SMALL_FEW,
    "joined": SMALL_JOINED,
    "16": make_tiles(16),
    "32": make_tiles(32, swap=True),
    "64": make_tiles(64, swap=True),
    "64_fixed": make_tiles(64, dynamic=False),
    "160_bulk": make_tiles(160, swap=True, bulk=True),
    "192": make_tiles(192),
}
KINDS = {"rows_left": {}, "weights_left": {"swap": True}, "weights_left_by_bulk": {"swap": True, "bulk": True}}


@pytest.fixture(autouse=True)
def poison():
    """Not here: kernels that fill memory would stand between the launches that are to overlap."""


def captured(run):
    """A CUDA graph of `run()`, whose kernels are compiled before, and what `run` returned."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def forward_of(layer, x, **options) -> torch.Tensor:
    layer.x = x
    return layer.fast(**options)


def inputs_of_many_routings(layer) -> list[torch.Tensor]:
    """Inputs of one shape: spread, skewed, all tokens on the same experts, on the first ones, on the last ones."""
    tokens, experts = layer.case.tokens, layer.case.num_experts
    spread = [rounded_logits(tokens, experts, seed) for seed in range(4)]
    ramp = torch.linspace(6, -6, experts)
    skewed = [logits / 4 + ramp.roll(shift) for shift, logits in enumerate(spread)]
    same = [spread[0][:1].expand(tokens, -1), ramp.expand(tokens, -1), ramp.flip(0).expand(tokens, -1)]
    inputs = []
    for logits in spread + skewed + same:
        x = layer.x.clone()
        x[:, :experts] = logits.to(x)
        inputs.append(x)
    return inputs


def without_overlap(run):
    """`run()` with every kernel starting when the one before it is over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdl, "target_of", lambda device: INTERPRETER)
        return run()


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_graph_follows_inputs_and_routing(tokens, dtype, device):
    layer = make_layer(device, tokens=tokens, **SHAPE, dtype=dtype)
    inputs = inputs_of_many_routings(layer)
    static = layer.x
    graph, y = captured(layer.fast)
    for x in inputs:
        static.copy_(x)
        graph.replay()
        replayed = y.clone()
        assert torch.equal(replayed, forward_of(layer, x))
        assert_accurate(replayed, layer.reference(torch.float32), layer.reference(static.dtype), 1.5)
        graph.replay()
        assert torch.equal(y, replayed)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_a_graph_follows_routing_done_outside(tokens, kind, device):
    """Ids of which some are of no expert here: others in every replay."""
    experts, top_k = SHAPE["experts"], SHAPE["top_k"]
    routings = [draw_ids(tokens, experts + 6, top_k, seed) - 3 for seed in range(6)]
    routings += [torch.full((tokens, top_k), -1), torch.arange(top_k).expand(tokens, -1)]
    routed = make_routed(device, tokens=tokens, **SHAPE, activation="gpt_oss", biases=True)
    static = routed.but(ids=routed.ids.to(kind))
    graph, y = captured(static.forward)
    for number, ids in enumerate(routings):
        fresh = routed.but(ids=ids.to(device=device, dtype=kind), x=routed.x.flip(1).roll(number, 1))
        static.ids.copy_(fresh.ids)
        static.x.copy_(fresh.x)
        graph.replay()
        assert torch.equal(y, fresh.forward())
        if (fresh.local_ids() < 0).all():
            assert torch.equal(y, torch.zeros_like(y))
        else:
            assert_accurate(y, fresh.reference(torch.float32), fresh.reference(y.dtype), 1.5)


@pytest.mark.parametrize("name", TILES)
def test_a_graph_of_any_tiles_follows_inputs_and_routing(name, device):
    tiles = TILES[name]
    if name.endswith("bulk") and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("bulk copies need compute capability 9")
    layer = make_layer(device, tokens={"few": 7, "joined": 30}.get(name, 300), **SHAPE)
    inputs = inputs_of_many_routings(layer)
    static = layer.x
    graph, y = captured(lambda: layer.fast(tiles=tiles))
    for x in inputs:
        static.copy_(x)
        graph.replay()
        assert torch.equal(y, forward_of(layer, x, tiles=tiles))
        assert_accurate(y, layer.reference(torch.float32), layer.reference(static.dtype), 1.5)


@pytest.mark.parametrize("memory", ["used_again", "wiped"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_no_kernel_reads_what_an_earlier_routing_left(tokens, shape, memory, device, monkeypatch):
    """The down kernel reads the table of blocks before it waits: neither a cache nor memory may give it an old one.

    Forwards of other routings follow each other in a graph, with no other kernel between them and their tables at the
    same addresses; or at addresses of their own, whose contents are wiped before every replay.
    """
    layer = make_layer(device, tokens=tokens, **SHAPES[shape])
    inputs = inputs_of_many_routings(layer)
    expected = without_overlap(lambda: [forward_of(layer, x) for x in inputs])
    layer.x = inputs[1]
    assert_accurate(expected[1], layer.reference(torch.float32), layer.reference(layer.x.dtype), 1.5)
    statics = [x.clone() for x in inputs]
    made = []
    if memory == "wiped":
        empty = torch.empty

        def kept(*arguments, **options):
            made.append(empty(*arguments, **options))
            return made[-1]

        monkeypatch.setattr(torch, "empty", kept)

    def forwards():
        made.clear()
        return [forward_of(layer, x) for x in statics]

    graph, outputs = captured(forwards)
    wrong = torch.zeros(len(statics), dtype=torch.int64, device=device)
    for turn in range(60):
        for number, x in enumerate(statics):
            x.copy_(inputs[(number + turn) % len(inputs)])
        for tensor in made:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        graph.replay()
        for number, y in enumerate(outputs):
            wrong[number] += (y != expected[(number + turn) % len(inputs)]).any()
    assert (memory == "wiped") == bool(made)
    assert wrong.tolist() == [0] * len(statics)


@pytest.mark.parametrize("tokens", TOKENS)
def test_forwards_chained_in_one_graph(tokens, device):
    """Each forward takes up the memory of the intermediates before it, while the kernels before may still drain."""
    layer = make_layer(device, tokens=tokens, **SHAPE)
    inputs = inputs_of_many_routings(layer)
    expected = [forward_of(layer, x) for x in inputs]

    def chain():
        outputs = []
        for x in inputs:
            # Only a NaN of the forward before changes the sum, and it must wait for it.
            outputs.append(forward_of(layer, x + 0 * outputs[-1] if outputs else x))
        return outputs

    graph, outputs = captured(chain)
    for _ in range(5):
        graph.replay()
    for output, alone in zip(outputs, expected):
        assert torch.equal(output, alone)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_overlapping_launches_give_the_same_bits(tokens, shape, device):
    if "launch_pdl" not in pdl.launch_options(torch.device("cuda", 0)):
        pytest.skip("launches overlap from compute capability 9 on")
    layer = make_layer(device, tokens=tokens, **SHAPES[shape], skew=1.2)
    overlapping = [layer.fast() for _ in range(20)]
    alone = without_overlap(layer.fast)
    for y in overlapping:
        assert torch.equal(y, alone)


@pytest.mark.parametrize("tokens", [1, 3, 40, 128, 512])
@pytest.mark.parametrize("shape", DEEP)
def test_loops_of_many_steps(shape, tokens, device):
    layer = make_layer(device, tokens=tokens, **DEEP[shape], skew=0.6)
    y = layer.assert_fast_right()
    for _ in range(5):
        assert torch.equal(layer.fast(), y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("block_m", [16, 64, 128, 160, 192])
def test_loops_of_many_steps_at_every_height(block_m, dynamic, kind, device):
    if kind.endswith("bulk") and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("bulk copies need compute capability 9")
    layer = make_layer(device, tokens=200, **DEEP["long_ffn"], skew=1.2)
    layer.assert_fast_right(tiles=make_tiles(block_m, **KINDS[kind], dynamic=dynamic))


FIRST_CALL = """
import torch
from moe_cases import make_layer
layer = make_layer("cuda", tokens={tokens}, experts=16, top_k=4, hidden=256, ffn=192)
tensors = layer.x, *layer.parameters
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = layer.fast()
graph.replay()
torch.cuda.synchronize()
exact, own = layer.reference(torch.float32), layer.reference(layer.x.dtype)
error, allowed = (float((out.float() - exact).norm() / exact.norm()) for out in (y, own))
assert error <= 1.5 * allowed, (error, allowed)
"""
"""A process in which nothing has met cuBLAS when the capture begins."""


@pytest.mark.parametrize("tokens", [1, WIDE_TOKENS, SPLIT_TOKENS, SPLIT_TOKENS + 1])
def test_a_first_call_inside_of_a_capture(tokens):
    code = FIRST_CALL.format(tokens=tokens)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=checkout.program_environment(),
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr


def test_a_stream_of_its_own(device):
    """On another stream than the default one, kernels wait for each other as well."""
    layer = make_layer(device, tokens=32, **SHAPE)
    expected = layer.fast()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = [layer.fast() for _ in range(20)]
    torch.cuda.current_stream().wait_stream(stream)
    for y in outputs:
        assert torch.equal(y, expected)


@pytest.mark.parametrize("tokens", [1, 8, 128])
def test_two_streams_at_once(tokens, device):
    """Layers of many small experts side by side, eager and in graphs: none finds another's routing in its memory."""
    shape = {"experts": 256, "top_k": 8, "hidden": 512, "ffn": 256}
    layers = [make_layer(device, tokens=tokens, **shape, skew=skew) for skew in (0.0, 2.0)]
    expected = [layer.fast() for layer in layers]
    graphs = [captured(layer.fast) for layer in layers]
    streams = [torch.cuda.Stream() for _ in layers]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    wrong = torch.zeros(len(layers), 2, dtype=torch.int64, device=device)
    for _ in range(30):
        for number, (layer, stream, (graph, y)) in enumerate(zip(layers, streams, graphs)):
            with torch.cuda.stream(stream):
                wrong[number, 0] += (layer.fast() != expected[number]).any()
                graph.replay()
                wrong[number, 1] += (y != expected[number]).any()
    torch.cuda.synchronize()
    assert wrong.tolist() == [[0, 0], [0, 0]]
