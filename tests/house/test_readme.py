"""What the README says of using a kernel is so: its code runs as it stands, its limits are those of the checks."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.workload.reference import moe_forward
from tritonmoe_bench.kernels import Gating, checks, fast_moe

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Use a kernel\n")[1].split("\n## ")[0]
EXPERTS, TOKENS, HIDDEN, FFN = 4, 6, 64, 48


@pytest.fixture
def layer(device):
    """A block of experts as a checkpoint has it, an input and a router."""
    torch.manual_seed(0)

    def matrix(rows, columns):
        linear = torch.nn.Linear(columns, rows, bias=False, device=device, dtype=torch.float16)
        torch.nn.init.normal_(linear.weight, std=columns**-0.5)
        return linear

    experts = [SimpleNamespace(w1=matrix(FFN, HIDDEN), w3=matrix(FFN, HIDDEN), w2=matrix(HIDDEN, FFN))
               for _ in range(EXPERTS)]  # fmt: skip
    x = torch.randn(2, TOKENS // 2, HIDDEN, device=device).half()
    router = torch.randn(EXPERTS, HIDDEN, device=device).half()
    return SimpleNamespace(experts=experts), x, router


def test_its_code_runs_and_gives_the_layer_of_the_checkpoint(layer):
    block, x, router_weight = layer
    blocks = [re.sub("(?m)^  ", "", code) for code in re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)]
    call, routed, convert = (code for code in blocks if "integrations" not in code)  # tests/integrations runs that one
    names = {"torch": torch, "block": block, "x": x, "router_weight": router_weight}
    exec(convert, names)
    exec(call, names)
    scores, ids = (x.float() @ router_weight.float().T).softmax(-1).topk(2)
    also = {**names, "topk_ids": ids, "topk_weights": scores / scores.sum(-1, keepdim=True)}
    exec(routed, also)

    def expert(index):
        return tuple(getattr(block.experts[index], name).weight for name in ("w1", "w3", "w2"))

    with torch.no_grad():
        right = moe_forward(x.flatten(0, -2), router_weight, expert, 2, Gating(renormalize=True)).view(x.shape)
    for y in (names["y"], also["y"]):
        assert y.shape == x.shape
        assert (y.float() - right).norm() / right.norm() < 2e-3
    assert names["gate_up"].requires_grad
    with pytest.raises(RuntimeError, match="compute no gradients"):
        names["y"].sum().backward()


def test_what_it_refuses_is_told_before_it_is_tried(layer):
    _, x, router_weight = layer
    gate_up = x.new_zeros(EXPERTS, 2 * FFN, HIDDEN + 8)[..., :HIDDEN]
    down = x.new_zeros(EXPERTS, HIDDEN, FFN)
    with pytest.raises(ValueError, match="gate_up must be contiguous"):
        fast_moe(x, router_weight, gate_up, down, 2)
    assert "Weights are contiguous" in re.sub(r"\s+", " ", SECTION)
    assert f"Up to {checks.MAX_EXPERTS} experts, top-{checks.MAX_TOP_K}, and " in SECTION
    assert f"above {checks.MAX_SLOTS // checks.MAX_TOP_K} tokens of top-{checks.MAX_TOP_K}" in SECTION
