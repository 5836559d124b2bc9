"""What the adapters over a library's expert GEMMs share: slots sorted by expert, counts on the host, SiLU x up."""

from __future__ import annotations

import pytest
import tiny_layer
import torch

from tritonmoe_bench.baselines.parts.by_expert import ByExpert
from tritonmoe_bench.baselines.parts.host_ends import HostEnds
from tritonmoe_bench.baselines.parts.silu_gate import silu_gate
from tritonmoe_bench.experiments.workload.reference import relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights


def test_rows_are_sorted_by_expert_in_the_order_of_tokens():
    made = tiny_layer.case(tokens=12)
    weights, routing = Weights(made, "cpu"), draw_routing(made)
    layer, x = ByExpert(made, weights), activations(made, routing, "cpu")
    slots = layer.sort(x)
    assert slots.ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist() == routing.counts.tolist()
    experts = torch.from_numpy(routing.experts).flatten()[slots.order]
    keys = experts * len(slots.order) + slots.order
    assert keys.diff().gt(0).all()
    assert torch.equal(layer.rows(x, slots), x[slots.order // made.top_k])


def test_host_ends_are_those_of_the_last_copy():
    ends = HostEnds(3, torch.device("cpu"))
    for values in ([1, 2, 3], [0, 0, 5]):
        ends.copy(torch.tensor(values))
        assert ends.wait().tolist() == values


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_silu_gate(name, device):
    both = torch.randn(3, 2 * 40, device=device).to(TORCH_DTYPE[name])
    hidden = silu_gate(both, both.new_full((3, 40), float("nan")))
    expected = torch.nn.functional.silu(both[:, :40].float()) * both[:, 40:].float()
    assert relative_error(hidden, expected) < (4e-3 if name == "bf16" else 5e-4)
