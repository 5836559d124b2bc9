"""The slots of the shared expert behind those of the routed ones."""

import pytest
import torch
from moe_cases import random

from tritonmoe_bench.kernels.fast.shared import append_shared


@pytest.mark.parametrize(("tokens", "top_k", "hidden"), [(1, 1, 64), (5, 8, 2880), (33, 10, 4100)])
@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("gated", [False, True])
def test_every_token_gets_the_slots_of_the_shared_expert(tokens, top_k, hidden, parts, gated, dtype, device):
    x = random(tokens, hidden + 8, dtype=dtype, device=device)[:, :hidden]
    gate = random(hidden, dtype=dtype, device=device, seed=1, scale=hidden**-0.5) if gated else None
    experts = torch.arange(tokens * top_k, dtype=torch.int32, device=device).view(tokens, top_k)
    weights = torch.rand(tokens, top_k, device=device)
    all_experts, all_weights = append_shared(x, experts, weights, range(77, 77 + parts), gate)
    assert torch.equal(all_experts[:, :top_k], experts)
    assert torch.equal(all_weights[:, :top_k], weights)
    assert all_experts[:, top_k:].tolist() == [list(range(77, 77 + parts))] * tokens
    share = torch.sigmoid(x.float() @ gate.float()) if gated else torch.ones(tokens, device=device)
    torch.testing.assert_close(all_weights[:, top_k:], share[:, None].expand(-1, parts), rtol=1e-5, atol=1e-6)
