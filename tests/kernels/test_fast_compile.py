"""`fast` under torch.compile: one operator in one graph, whatever the gating, with the eager numbers."""

import pytest
import torch
from fast_cases import make_tiles
from moe_cases import make_layer
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tritonmoe_bench.kernels import GATINGS, Gating
from tritonmoe_bench.kernels.fast.choose import choose_tiles
from tritonmoe_bench.kernels.fast.layer import fast_moe
from tritonmoe_bench.kernels.fast.operator import fast_moe_op

SHAPE = {"experts": 16, "top_k": 2, "hidden": 32, "ffn": 16}
OP = torch.ops.tritonmoe.fast_moe.default


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Recorder:
    """A backend that keeps the graphs it is given, and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, example_inputs):
        self.graphs.append(graph)
        return graph.forward

    def operators(self):
        return [[node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in self.graphs]


def compiled(layer, backend):
    """The layer as a compiled function of x, with its tensors made outside of it."""
    parameters = layer.parameters
    return torch.compile(lambda x: fast_moe(x, *parameters), fullgraph=True, backend=backend)


def op_arguments(layer):
    gating, bias = layer.case.gate, layer.weights.correction_bias()
    plain = (gating.scoring, gating.renormalize, gating.groups, gating.top_groups, gating.scale)
    return (layer.x, *layer.parameters[:4], *plain, bias)


@pytest.mark.parametrize("gating", GATINGS)
def test_the_operator_takes_every_gating(gating, device):
    layer = make_layer(device, tokens=3, **SHAPE, gating=gating)
    assert torch.equal(fast_moe_op(*op_arguments(layer)), layer.fast())


@pytest.mark.parametrize(("gating", "backend"), [("softmax", "eager"), ("deepseek_v3", "aot_eager")])
def test_a_compiled_layer_gives_the_eager_numbers(gating, backend, device):
    layer = make_layer(device, tokens=5, **SHAPE, gating=gating)
    parameters, bias = layer.parameters, layer.weights.correction_bias()

    @torch.compile(fullgraph=True, backend=backend)
    def forward(x):
        return fast_moe(x * 1, *parameters, correction_bias=bias) * 2

    with torch.inference_mode():
        assert torch.equal(forward(layer.x), layer.fast() * 2)


def test_the_graph_holds_one_operator(device):
    layer, recorder = make_layer(device, tokens=3, **SHAPE), Recorder()
    compiled(layer, recorder)(layer.x)
    assert [[str(target) for target in graph] for graph in recorder.operators()] in (
        [["tritonmoe.fast_moe.default"]], [["tritonmoe.fast_moe"]],
    )  # fmt: skip


def test_a_gating_made_inside_of_the_graph_and_none_at_all(device):
    layer = make_layer(device, tokens=3, **SHAPE, gating="softmax_renorm")
    tensors = layer.parameters[:3]
    renormalized = torch.compile(
        lambda x: fast_moe(x, *tensors, 2, Gating(renormalize=True)), fullgraph=True, backend="eager"
    )
    plain = torch.compile(lambda x: fast_moe(x, *tensors, 2), fullgraph=True, backend="eager")
    assert torch.equal(renormalized(layer.x), layer.fast())
    assert torch.equal(plain(layer.x), fast_moe(layer.x, *tensors, 2))
    assert not torch.equal(plain(layer.x), renormalized(layer.x))


def test_a_changing_number_of_tokens_compiles_at_most_twice(device):
    layer, recorder = make_layer(device, tokens=8, **SHAPE), Recorder()
    forward = compiled(layer, recorder)
    for tokens in (5, 3, 8, 7):
        y = forward(layer.x[:tokens])
        assert torch.equal(y, fast_moe(layer.x[:tokens], *layer.parameters))
    assert len(recorder.graphs) <= 2


def test_rows_of_x_that_lie_apart(device):
    layer = make_layer(device, tokens=4, **SHAPE)
    y = layer.fast()
    apart = torch.nn.functional.pad(layer.x, (0, 8))[:, : SHAPE["hidden"]]
    assert torch.equal(compiled(layer, "aot_eager")(apart), y)


def test_the_operator_is_registered_right(device):
    layer = make_layer(device, tokens=2, **SHAPE, gating="deepseek_v3")
    torch.library.opcheck(OP, op_arguments(layer))


def test_an_eager_call_does_not_pass_through_the_dispatcher(device):
    layer = make_layer(device, tokens=2, **SHAPE)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(operator)
            return operator(*args, **(kwargs or {}))

    with Watch():
        layer.fast()
        assert OP not in seen
        fast_moe_op(*op_arguments(layer))
    assert OP in seen


@pytest.mark.parametrize("gating", [None, GATINGS["deepseek_v3"]], ids=["none", "deepseek_v3"])
def test_fake_tensors_give_a_fake_tensor(gating, device):
    def fake(*shape, dtype=torch.float16):
        return torch.empty(shape, dtype=dtype, device=device)

    with FakeTensorMode():
        bias = fake(16, dtype=torch.float32) if gating else None
        y = fast_moe(fake(6, 32), fake(16, 32), fake(16, 32, 32), fake(16, 32, 16), 2, gating, correction_bias=bias)
    assert isinstance(y, FakeTensor)
    assert (y.shape, y.dtype, y.device.type) == ((6, 32), torch.float16, device)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_one_operator(mode, device):
    layer = make_layer(device, tokens=5, **SHAPE)
    graph = make_fx(lambda x, *weights: fast_moe(x + 1, *weights, 2), tracing_mode=mode)(layer.x, *layer.parameters[:3])
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"].count(OP) == 1
    assert torch.equal(graph(layer.x, *layer.parameters[:3]), fast_moe(layer.x + 1, *layer.parameters[:3], 2))


def test_tiles_are_refused_where_shapes_alone_are_computed(device):
    with FakeTensorMode():
        layer = [torch.empty(shape, dtype=torch.float16) for shape in ((6, 32), (8, 32), (8, 32, 32), (8, 32, 16))]
        with pytest.raises(ValueError, match="tiles cannot be given where a graph is traced"):
            fast_moe(*layer, 2, tiles=make_tiles(16))


def test_a_backend_that_runs_the_graph_while_it_compiles(device):
    layer = make_layer(device, tokens=3, **SHAPE)
    seen = []

    def backend(graph, example_inputs):
        seen.append(graph(*example_inputs))
        return graph.forward

    assert torch.equal(compiled(layer, backend)(layer.x), layer.fast())
    assert torch.equal(seen[0][0], layer.fast())


def test_an_eager_call_while_another_thread_compiles(monkeypatch, device):
    """PyTorch says of the whole process that it compiles."""
    layer = make_layer(device, tokens=3, **SHAPE)
    y, tiles = layer.fast(), make_tiles(16)
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.equal(layer.fast(), y)
    layer.assert_fast_right(tiles=tiles)


def test_what_the_checks_find_is_raised_when_the_graph_runs(device):
    layer = make_layer(device, tokens=2, **SHAPE)
    tensors = layer.parameters[:3]
    wrong = torch.compile(lambda x: fast_moe(x, *tensors, 33), fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match="top_k=33"):
        wrong(layer.x)


@pytest.mark.parametrize("wrong", ["tiles", "correction_bias"])
def test_what_a_graph_cannot_hold_is_refused(wrong, device):
    layer = make_layer(device, tokens=2, **SHAPE)
    parameters = layer.parameters
    options = {
        "tiles": choose_tiles(layer.x.device, 16, 2, 32, 16, 2), "correction_bias": torch.zeros(16, device=device),
    }  # fmt: skip
    options = {wrong: options[wrong]}
    forward = torch.compile(lambda x: fast_moe(x, *parameters, **options), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=wrong):
        forward(layer.x)
