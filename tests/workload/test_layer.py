"""A model's own layer: its facts, its cases, the routing that every router still finds, and its reference."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from tiny_layer import NATIVE, native

from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.traffic.rows import traffic_rows
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import (
    CONF,
    GridConfig,
    PlanError,
    StudyConfig,
    SweepConfig,
    load_model,
    model_names,
)
from tritonmoe_bench.experiments.workload.layer import PLAIN_LAYER, Layer
from tritonmoe_bench.experiments.workload.reference import moe_forward, quantize_fp8, relative_error, route
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights
from tritonmoe_bench.kernels.gating import GATINGS

FOREIGN = ("phi_3_5_moe", "deepseek_v4_flash")
"""Models whose gating is none of ours."""
STUDY = StudyConfig(name="adhoc", grids=[GridConfig(models=["mixtral"], tokens=[2])])


def cases(model: str, **keys) -> list[Case]:
    return make_plan(SweepConfig(model=load_model(model), study=STUDY, layer="native", **keys), ["fast"]).cases


def test_a_plain_case_keeps_the_hash_it_had_and_facts_change_it():
    plain = Case("t", 8, 2, 64, 48, 5)
    old = {name: value for name, value in asdict(plain).items() if name not in ("layer", "facts")}
    assert Case(**old).case_hash == plain.case_hash
    every = [replace(plain, layer="native", facts=facts) for facts in ({}, *NATIVE)]
    assert len({case.case_hash for case in (plain, *every)}) == len(NATIVE) + 2
    assert all(Case(**asdict(case)) == case for case in every)
    assert len({case.weights_key for case in every}) == len(NATIVE) + 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": "own"}, "layer=own: allowed are plain, native"),
        ({"facts": {"router_bias": True}}, "layer=plain: has no router_bias, write layer=native"),
        ({"layer": "native", "facts": {"activation": "relu"}}, "activation=relu: allowed are silu, gpt_oss"),
        ({"layer": "native", "facts": {"shared_ffn": -1}}, "shared_ffn=-1: a whole number"),
        ({"layer": "native", "facts": {"shared_gate": True}}, "shared_gate=true: needs a shared expert"),
    ],
)
def test_a_layer_that_cannot_be_names_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        Case("t", 8, 2, 64, 48, 5, **fields)


def test_a_layer_that_is_not_built_here_says_why():
    for name in FOREIGN:
        for keys in ({"layer": "native"}, {"gating": "native"}):
            with pytest.raises(PlanError, match=f"=native: not of {name}, its "):
                make_plan(SweepConfig(model=load_model(name), study=STUDY, **keys), ["fast"])
        make_plan(SweepConfig(model=load_model(name), study=STUDY), ["fast"])


@pytest.mark.parametrize("name", [name for name in model_names() if name not in FOREIGN])
def test_every_model_has_a_native_layer_and_says_where_it_is_from(name):
    text = (CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    assert name == "tiny" or "config" in text or "see qwen2_57b_a14b" in text
    (case,) = cases(name, quant="native")
    stated = yaml.safe_load(text)
    assert (case.layer, case.gating) == ("native", stated["native_gating"])
    assert case.facts == Layer(**{key: stated[key] for key in asdict(PLAIN_LAYER) if key in stated})
    assert case.quant == stated.get("native_quant", "none")


def test_the_native_layer_has_its_own_gating_and_a_shard_its_part_of_the_shared_expert():
    assert [case.facts.shared_ffn for case in cases("qwen2_57b_a14b", tp=[1, 4])] == [20480, 5120]
    with pytest.raises(PlanError, match="gating=sigmoid: layer=native of mixtral has softmax_renorm"):
        cases("mixtral", gating="sigmoid")
    with pytest.raises(PlanError, match="layer=own: allowed are plain, native"):
        make_plan(SweepConfig(model=load_model("tiny"), study=STUDY, layer="own"), ["fast"])


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("skew", [0.0, 2.5])
@pytest.mark.parametrize("biased", [False, True])
def test_every_router_finds_the_drawn_experts_through_biases_and_groups(gating, dtype, skew, biased):
    facts = {"router_bias": biased and not GATINGS[gating].correction_bias}
    drawn = native(facts, num_experts=64, top_k=6, hidden_dim=96, tokens=40, skew=skew, dtype=dtype, gating=gating)
    routing, weights = draw_routing(drawn), Weights(drawn, "cpu")
    x, correction = activations(drawn, routing, "cpu"), weights.correction_bias()
    logits = torch.nn.functional.linear(x, weights.router(), weights.router_bias())
    assert torch.equal(logits.float(), torch.from_numpy(routing.logits))
    experts = np.sort(routing.experts, axis=1)
    assert (np.sort(route(logits, drawn.top_k, drawn.gate, correction)[1].numpy(), axis=1) == experts).all()
    if drawn.gate.groups == 1:  # in 16 bits too, where scores and choice are rounded
        scores = logits.sigmoid() if drawn.gate.scoring == "sigmoid" else logits.softmax(-1)
        choice = scores if correction is None else scores + correction.to(scores.dtype)
        assert (np.sort(choice.topk(drawn.top_k).indices.numpy(), axis=1) == experts).all()
    assert routing.counts.sum() == drawn.slots


def test_groups_are_those_of_the_largest_drawn_logits():
    drawn = native({}, num_experts=64, top_k=6, hidden_dim=96, tokens=200, gating="deepseek_v3")
    groups = [len(set(row // 8)) for row in draw_routing(drawn).experts]
    assert max(groups) <= 4
    assert set(groups) >= {3, 4}


def by_hand(case: Case, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The layer token by token and expert by expert, in float64."""
    facts, y = case.facts, torch.zeros_like(x, dtype=torch.float64)
    logits = x.double() @ weights.router().double().T
    bias = weights.router_bias()
    chosen, experts = route(logits if bias is None else logits + bias.double(), case.top_k, case.gate)

    def expert(row, index, width):
        gate, up, down = (part.double() for part in weights._matrices(index, width))
        biased = facts.expert_bias and index < case.num_experts
        both, last = (weights.gate_up_bias()[index], weights.down_bias()[index]) if biased else (0.0, 0.0)
        gate, up = (torch.cat([gate, up]) @ row + both).chunk(2)
        if facts.activation == "gpt_oss":
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            return down @ ((up + 1) * gate / (1 + torch.exp(-1.702 * gate))) + last
        return down @ (gate / (1 + torch.exp(-gate)) * up) + last

    for token, row in enumerate(x.double()):
        for weight, index in zip(chosen[token].double(), experts[token].tolist()):
            inward, outward = (weight, 1.0) if facts.weights_on_input else (1.0, weight)
            y[token] += outward * expert(inward * row, index, case.ffn_dim)
        if facts.shared_ffn:
            gate = 1 / (1 + torch.exp(-weights.shared_router().double() @ row)) if facts.shared_gate else 1.0
            y[token] += gate * expert(row, case.num_experts, facts.shared_ffn)
    return y


@pytest.mark.parametrize("facts", NATIVE, ids=str)
def test_the_reference_is_the_layer_by_hand(facts):
    case = native(facts)
    weights, x = Weights(case, "cpu"), activations(case, draw_routing(case), "cpu")
    y = moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate, parts=weights.parts())
    exact = by_hand(case, weights, x)
    assert relative_error(y, exact) < 1e-5
    plain = moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate)
    assert facts == {"float32_router": True} or relative_error(plain, exact) > 0.05


@pytest.mark.parametrize("facts", NATIVE, ids=str)
@pytest.mark.parametrize("name", ["torch_loop", "torch_grouped_mm"])
def test_the_systems_in_pytorch_run_every_native_layer(name, facts):
    system, case = registry.get(name), native(facts, tokens=33)
    assert system.answer(case).status.value == "ok"
    weights, x = Weights(case, "cpu"), activations(case, draw_routing(case), "cpu")
    with torch.inference_mode():
        y = system.build(case, weights)(x)
    assert relative_error(y, by_hand(case, weights, x)) < 0.012


def test_a_system_without_a_part_says_which():
    answer = registry.get("paper_fused").answer(native({"router_bias": True, "shared_ffn": 48}))
    assert answer.status.value == "unsupported"
    assert answer.reason == "layer=native: t needs a bias of the router and a shared expert"


def test_bytes_and_operations_of_a_known_layer():
    qwen = cases("qwen2_57b_a14b")[0]
    assert qwen.shared_bytes == 8 * qwen.expert_bytes
    assert qwen.min_bytes(16) == 24 * qwen.expert_bytes + (64 + 1 + 4) * 3584 * 2
    assert qwen.flops == 6 * 2 * (8 * 2560 + 20480) * 3584 + 2 * 2 * 65 * 3584
    oss = cases("gpt_oss_20b")[0]
    assert oss.min_bytes(1) == oss.expert_bytes + 2 * (3 * 2880 + 32 * 2881 + 4 * 2880)
    assert cases("gpt_oss_20b", quant="native")[0].expert_bytes < 0.27 * oss.expert_bytes


def test_the_limit_reads_the_shared_expert_too():
    case = native({"shared_ffn": 96})
    weights = Weights(case, "cpu")
    assert weights.flat().shape == (8 + 2, case.expert_bytes // 4)
    assert Weights(native({"shared_ffn": 80}), "cpu").flat().shape[0] == 8 + 1


@pytest.mark.parametrize("quant", ["none", "fp8_block"])
def test_a_shared_expert_of_the_same_width_stands_behind_the_others(quant):
    case = native({"shared_ffn": 128}, hidden_dim=128, ffn_dim=128, quant=quant)
    weights, (gate, up, down) = Weights(case, "cpu"), Weights(case, "cpu").parts().shared
    if quant == "none":
        gate_up, out = weights.gate_up(with_shared=True), weights.down(with_shared=True)
    else:
        gate_up = weights.packed_gate_up(with_shared=True).unpack()
        out = weights.packed_down(with_shared=True).unpack()
        with pytest.raises(ValueError, match="ask for them with_shared"):
            weights.shared_gate_up()
    assert torch.equal(gate_up[8], torch.cat([gate, up]))
    assert torch.equal(out[8], down)
    with pytest.raises(ValueError, match="a shared expert of width 80 is no whole number of 48"):
        Weights(native({"shared_ffn": 80}), "cpu").gate_up(with_shared=True)


@pytest.mark.parametrize("quant", ["none", "fp8_block"])
def test_a_wider_shared_expert_is_several(quant):
    case = native({"shared_ffn": 256}, hidden_dim=128, ffn_dim=128, quant=quant)
    weights, (gate, up, down) = Weights(case, "cpu"), Weights(case, "cpu").parts().shared
    if quant == "none":
        gate_up, out = weights.gate_up(with_shared=True), weights.down(with_shared=True)
    else:
        gate_up, out = (made(with_shared=True).unpack() for made in (weights.packed_gate_up, weights.packed_down))
    assert torch.equal(gate_up[8:, :128].flatten(0, 1), gate)
    assert torch.equal(gate_up[8:, 128:].flatten(0, 1), up)
    assert torch.equal(torch.cat(tuple(out[8:]), dim=1), down)


@pytest.mark.parametrize("facts", NATIVE, ids=str)
@pytest.mark.parametrize(("tokens", "dtype", "gating"), [(1, "bf16", "softmax_renorm"), (33, "fp16", "sigmoid")])
def test_fast_runs_every_native_layer(facts, tokens, dtype, gating, device):
    system, case = registry.get("fast"), native(facts, tokens=tokens, dtype=dtype, gating=gating)
    assert system.answer(case).status.value == "ok"
    weights, x = Weights(case, device), activations(case, draw_routing(case), device)
    arguments = (x, weights.router(), weights.expert, case.top_k, case.gate)
    own = moe_forward(*arguments, dtype=x.dtype, parts=weights.parts())
    exact = by_hand(case, weights, x)
    assert relative_error(system.build(case, weights)(x), exact) < 1.5 * relative_error(own, exact)


PACKED = [
    ("mxfp4", {"activation": "gpt_oss", "expert_bias": True, "router_bias": True}),
    ("fp8_block", {"shared_ffn": 128, "shared_gate": True}),
    ("fp8_block", {"shared_ffn": 256}),
    ("int4", {"shared_ffn": 128}),
]


@pytest.mark.parametrize(("quant", "facts"), PACKED, ids=str)
@pytest.mark.parametrize("tokens", [1, 9])
def test_fast_runs_native_layers_in_their_own_format(quant, facts, tokens, device):
    system, case = registry.get("fast"), native(facts, hidden_dim=128, ffn_dim=128, tokens=tokens, quant=quant)
    assert system.answer(case).status.value == "ok"
    weights, x = Weights(case, device), activations(case, draw_routing(case), device)
    arguments = (x, weights.router(), weights.expert, case.top_k, case.gate)
    exact = moe_forward(*arguments, parts=weights.parts())
    rounded = quantize_fp8 if system.activations(case) == "a8" else None
    dtype = torch.float32 if rounded else x.dtype
    own = moe_forward(*arguments, dtype=dtype, quantize=rounded, parts=weights.parts())
    assert relative_error(system.build(case, weights)(x), exact) < 1.5 * relative_error(own, exact)


def test_packed_shared_experts_of_another_width_are_unsupported():
    answer = registry.get("fast").answer(native({"shared_ffn": 128}, hidden_dim=256, ffn_dim=256, quant="fp8_block"))
    assert answer.reason.startswith("quant=fp8_block: packed, a shared expert has to be some times as wide")


def test_traffic_of_a_native_layer_is_counted_and_has_no_closed_form():
    case = native({"router_bias": True, "shared_ffn": 48, "shared_gate": True}, dtype="fp16")
    (row,) = traffic_rows(case, "fast", "model")
    assert row["status"] == "unsupported"
    assert row["reason"].startswith("the closed form is of the plain layer")
    if not torch.cuda.is_available():
        rows = traffic_rows(case, "fast", "interpreter")
        assert {row["layer"] for row in rows} == {"native"}
        assert any("_append_shared_kernel" in row["stage"] for row in rows)
        assert rows[-1]["read_bytes"] > case.min_bytes(draw_routing(case).active_experts)
