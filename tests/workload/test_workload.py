"""Routing, activations and weights of a case."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import route
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing, zipf_log_probabilities
from tritonmoe_bench.experiments.workload.weights import Weights


def case(**changes):
    fields = {"model": "t", "num_experts": 16, "top_k": 3, "hidden_dim": 64, "ffn_dim": 32, "tokens": 20}
    return Case(**{**fields, **changes})


@settings(max_examples=30, deadline=None)
@given(
    experts=st.integers(1, 64), k=st.integers(1, 8), tokens=st.integers(1, 40), skew=st.floats(0, 3),
    seed=st.integers(0, 5), dtype=st.sampled_from(["bf16", "fp16"]), gating=st.sampled_from(["softmax", "sigmoid"]),
)  # fmt: skip
def test_any_router_in_any_precision_finds_the_drawn_experts(experts, k, tokens, skew, seed, dtype, gating):
    drawn = case(num_experts=experts, top_k=min(k, experts), tokens=tokens, skew=skew, seed=seed, dtype=dtype,
                 gating=gating)  # fmt: skip
    routing = draw_routing(drawn)
    x, router = activations(drawn, routing, "cpu"), Weights(drawn, "cpu").router()
    logits = x @ router.T
    assert torch.equal(logits.float(), torch.from_numpy(routing.logits))
    expected = np.sort(routing.experts, axis=1)
    _, chosen = route(logits, drawn.top_k, drawn.gate)
    assert (np.sort(chosen.numpy(), axis=1) == expected).all()
    scores = torch.softmax(logits, -1) if gating == "softmax" else torch.sigmoid(logits)
    assert (np.sort(scores.topk(drawn.top_k).indices.numpy(), axis=1) == expected).all()
    assert routing.counts.sum() == tokens * drawn.top_k
    assert all(len(set(row)) == drawn.top_k for row in routing.experts)


def test_first_choices_follow_the_zipf_law():
    drawn = case(num_experts=8, top_k=1, tokens=8192, skew=1.0)
    counts = np.sort(draw_routing(drawn).counts)[::-1] / drawn.tokens
    expected = 1 / np.arange(1, 9) / (1 / np.arange(1, 9)).sum()
    assert np.abs(counts - expected).max() < 0.015


def test_zipf_probabilities_sum_to_one_and_skew_zero_is_uniform():
    rng = np.random.default_rng(0)
    assert np.exp(zipf_log_probabilities(32, 1.3, rng)).sum() == pytest.approx(1)
    assert np.ptp(zipf_log_probabilities(32, 0.0, rng)) == 0


def test_the_same_case_gives_the_same_routing_and_another_seed_another():
    first, again, other = draw_routing(case()), draw_routing(case()), draw_routing(case(seed=1))
    assert (first.experts == again.experts).all()
    assert (first.experts != other.experts).any()


@pytest.mark.parametrize("dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_every_layout_holds_the_same_weights(dtype):
    weights = Weights(case(dtype=dtype[0]), "cpu")
    gate, up, down = weights.expert(5)
    assert gate.dtype == dtype[1]
    assert torch.equal(weights.gate()[5], gate)
    assert torch.equal(weights.gate_up()[5], torch.cat([gate, up]))
    assert torch.equal(weights.gate_up("kn")[5], torch.cat([gate, up]).T)
    assert torch.equal(weights.down("kn")[5], down.T)
    assert weights.down("kn").is_contiguous()
    assert weights.down() is weights.down()
    assert not torch.equal(gate, up)
    assert not torch.equal(Weights(weights.case, "cpu", set_index=1).gate()[5], gate)
    assert float(gate.float().std()) == pytest.approx(64**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens=0: allowed are 1 to 8192"),
        ({"tokens": True}, "a whole number"),
        ({"top_k": 17}, "top_k=17: allowed are 1 to num_experts=16"),
        ({"num_experts": 65}, "at most hidden_dim=64"),
        ({"skew": -0.1}, "skew=-0.1"),
        ({"skew": float("nan")}, "skew=nan"),
        ({"dtype": "fp32"}, "dtype=fp32: allowed are bf16, fp16"),
        ({"gating": "x"}, "gating=x: allowed are softmax"),
        ({"gating": "deepseek_v3", "num_experts": 12}, "divisible by its 8 groups"),
        ({"ffn_dim": 0}, "ffn_dim=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_an_impossible_case_names_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        case(**changes)


def test_bytes_and_operations_of_a_known_shape():
    mixtral = Case("mixtral", 8, 2, 4096, 14336, 512)
    assert mixtral.expert_bytes == 3 * 4096 * 14336 * 2
    assert mixtral.min_bytes(8) == 8 * mixtral.expert_bytes + (8 + 1024) * 4096 * 2
    assert mixtral.flops == 6 * 1024 * 4096 * 14336 + 2 * 512 * 8 * 4096
