"""`fast_experts` and all arguments of `fast_moe` as operators: compiled, exported, traced with fake tensors."""

import pytest
import torch
from experts_cases import draw_ids, make_routed
from moe_cases import make_layer, random
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels import Activation, Gating, fast_experts, fast_moe
from tritonmoe_bench.kernels.fast.operator import fast_experts_op

SHAPE = {"experts": 8, "top_k": 2, "hidden": 32, "ffn": 16}
EXPERTS_OP = torch.ops.tritonmoe.fast_experts.default
MOE_OP = torch.ops.tritonmoe.fast_moe.default


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def routed(device):
    """With every argument that is a tensor, and ids of no expert here."""
    expert_map = torch.tensor([7, -1, 0, 1, 2, 3, 4, 5, 6, -1], dtype=torch.int32, device=device)
    ids = draw_ids(12, 12, 2) - 1
    return make_routed(device, tokens=12, **SHAPE, ids=ids, biases=True, activation="gpt_oss", expert_map=expert_map)


def of_tokens(routed, forward, tokens):
    return forward(routed.x[:tokens], routed.ids[:tokens], routed.weights[:tokens])


def forward_of(routed):
    """The layer as a function of x and its routing, with its weights made outside of it."""
    gate_up, down, options = routed.gate_up, routed.down, routed.options
    return lambda x, ids, weights: fast_experts(x, gate_up, down, ids, weights, **options)


def operator_arguments(routed, invariant=False):
    options = routed.options
    arguments = (routed.x, routed.gate_up, routed.down, routed.ids, routed.weights, options["expert_map"])
    named = {
        "gate_up_bias": options["gate_up_bias"], "down_bias": options["down_bias"], "alpha": 1.702, "shift": 1.0,
        "limit": 7.0, "invariant": invariant,
    }  # fmt: skip
    return arguments, named


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [True, None])
def test_compiled_it_gives_the_eager_numbers_without_compiling_for_each_number_of_tokens(backend, dynamic, routed):
    """Once if it is told that numbers change, else at the first change too."""
    eager = forward_of(routed)
    compiled = torch.compile(eager, fullgraph=True, backend=backend, dynamic=dynamic)
    for tokens in (5,) if dynamic else (5, 3):
        of_tokens(routed, compiled, tokens)
    with torch.compiler.set_stance("fail_on_recompile"):
        for tokens in (3, 12, 7, 2, 9):
            assert torch.equal(of_tokens(routed, compiled, tokens), of_tokens(routed, eager, tokens))


def test_compiled_with_an_output(routed):
    gate_up, down = routed.gate_up, routed.down

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x, ids, weights, out):
        return fast_experts(x, gate_up, down, ids, weights, out=out, **routed.options)

    out = torch.full_like(routed.x, float("nan"))
    compiled(routed.x, routed.ids, routed.weights, out)
    assert torch.equal(out, routed.forward())


def test_compiled_of_three_dimensions(routed):
    compiled = torch.compile(forward_of(routed), fullgraph=True, backend="aot_eager")
    shaped = [part.view(3, 4, -1) for part in (routed.x, routed.ids, routed.weights)]
    assert torch.equal(compiled(*shaped), routed.forward().view(3, 4, -1))


def test_the_operators_are_registered_right(routed, device):
    torch.library.opcheck(EXPERTS_OP, *operator_arguments(routed))
    torch.library.opcheck(EXPERTS_OP, *operator_arguments(routed, invariant=True))
    layer = make_layer(device, tokens=3, **SHAPE)
    arguments = (layer.x, *layer.parameters[:4], "softmax", True, 1, 1, 1.0, None)
    bias = random(SHAPE["experts"], dtype="bf16", device=device)
    torch.library.opcheck(MOE_OP, arguments, {"router_bias": bias, "function": "gelu_tanh", "weights_on_input": True})


def test_the_operator_is_the_function(routed):
    arguments, named = operator_arguments(routed)
    assert torch.equal(fast_experts_op(*arguments, **named), routed.forward())


class Model(torch.nn.Module):
    def __init__(self, routed):
        super().__init__()
        self.gate_up, self.down = (
            torch.nn.Parameter(part, requires_grad=False) for part in (routed.gate_up, routed.down)
        )

    def forward(self, x, ids, weights):
        return fast_experts(x, self.gate_up, self.down, ids, weights, activation=Activation(limit=2.0))


@pytest.mark.parametrize("strict", [True, False])
def test_it_is_exported_for_any_number_of_tokens(strict, routed):
    model, tokens = Model(routed), torch.export.Dim("tokens", min=2, max=4096)
    example = (routed.x, routed.ids, routed.weights)
    exported = torch.export.export(model, example, dynamic_shapes=[{0: tokens}] * 3, strict=strict)
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == [EXPERTS_OP]
    for count in (12, 5):
        assert torch.equal(of_tokens(routed, exported.module(), count), of_tokens(routed, model, count))


def test_packed_weights(routed, device):
    made = Weights(Case("t", 8, 2, 128, 128, 12, quant="fp8_block"), device)
    wide = make_routed(device, tokens=12, experts=8, top_k=2, hidden=128, ffn=128)
    packed = wide.but(gate_up=made.packed_gate_up(), down=made.packed_down()).having(activations="a16")
    compiled = torch.compile(forward_of(packed), fullgraph=True, backend="aot_eager")
    assert torch.equal(of_tokens(packed, compiled, 12), packed.forward())


def test_every_argument_of_fast_moe_passes_a_graph(device):
    layer = make_layer(device, tokens=6, **SHAPE)
    router, gate_up, down, top_k, _ = layer.parameters
    biases = make_routed(device, tokens=1, **SHAPE, biases=True).options
    options = {
        "router_bias": random(SHAPE["experts"], dtype="bf16", device=device), "activation": Activation(limit=1.0),
        "weights_on_input": True, "invariant": True, **biases,
    }  # fmt: skip

    def forward(x):
        return fast_moe(x, router, gate_up, down, top_k, Gating(renormalize=True), **options)

    y = forward(layer.x)
    assert torch.equal(torch.compile(forward, fullgraph=True, backend="aot_eager")(layer.x), y)
    for name in options:
        options_before, options = options, {key: value for key, value in options.items() if key != name}
        assert name == "invariant" or not torch.equal(forward(layer.x), y)
        options = options_before


def test_fake_tensors_give_a_fake_tensor(device):
    with FakeTensorMode():
        x, ids = torch.empty(2, 3, 32, dtype=torch.float16), torch.zeros(6, 2, dtype=torch.int64)
        weights = torch.empty(8, 32, 32, dtype=torch.float16), torch.empty(8, 32, 16, dtype=torch.float16)
        y = fast_experts(x, *weights, ids, torch.empty(6, 2))
    assert isinstance(y, FakeTensor)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_no_gradient_is_lost_without_a_word(routed):
    y = routed.forward()
    for name in ("x", "gate_up", "weights"):
        learning = routed.but(**{name: getattr(routed, name).clone().requires_grad_()})
        asked = learning.forward()
        assert torch.equal(asked, y)
        with pytest.raises(RuntimeError, match="compute no gradients"):
            asked.sum().backward()
        with pytest.raises(RuntimeError, match="out cannot be given where an input requires a gradient"):
            learning.forward(out=torch.empty_like(y))
