"""The combine of `fast`: sums of a token's outputs, whatever the program that a GPU has for them."""

import pytest
import torch

from tritonmoe_bench.kernels.fast import forward
from tritonmoe_bench.kernels.fast.forward import combine_tile, launch_combine
from tritonmoe_bench.kernels.fast.local import Local


@pytest.mark.parametrize(
    ("tokens", "hidden", "tile"),
    [
        (1, 2048, (128, 1)),
        (32, 2048, (128, 1)),
        (33, 2048, (1024, 8)),
        (512, 4096, (1024, 8)),
        (600, 512, (512, 4)),
        (600, 64, (64, 1)),
        (2, 48, (64, 1)),
    ],
)
def test_a_program_is_one_warp_until_there_are_too_many(tokens, hidden, tile):
    assert combine_tile(tokens, hidden, on_gpu=True) == tile


def test_the_interpreter_has_one_program_a_token():
    assert combine_tile(512, 4096, on_gpu=False) == (4096, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", [(128, 1), (256, 2), (1024, 8)], ids=str)
def test_slots_without_an_expert_here_add_nothing(tile, dtype, device, monkeypatch):
    """Their outputs were never written. float16 has been weighted by then."""
    monkeypatch.setattr(forward, "combine_tile", lambda *_: tile)
    hidden, top_k = 300, 4
    experts = torch.tensor([[0, 5, -1, 2], [9, 9, 9, 9], [3, 1, 0, 4]])
    here = (experts >= 0) & (experts < 4)
    generator = torch.Generator().manual_seed(1)
    out = torch.randn(3, top_k, hidden, generator=generator).to(dtype)
    weights = torch.rand(3, top_k, generator=generator)
    shown = torch.ones_like(weights) if dtype == torch.float16 else weights
    expected = (torch.where(here[..., None], out.float(), 0.0) * shown[..., None]).sum(1)
    out[~here] = float("nan")
    y = launch_combine(
        out.view(-1, hidden).to(device), weights.to(device), experts=experts.int().to(device), local=Local(4)
    )
    torch.testing.assert_close(y.float().cpu(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("hidden", [200, 1100])
def test_it_sums_parts_and_slots_with_any_tile(hidden, parts, device, monkeypatch):
    tokens, top_k = 5, 3
    generator = torch.Generator().manual_seed(hidden + parts)
    out = torch.randn(parts, tokens * top_k, hidden, generator=generator).to(device)
    weights = torch.rand(tokens, top_k, generator=generator).to(device)
    expected = (out.sum(0).view(tokens, top_k, hidden) * weights[..., None]).sum(1)
    seen = []
    for tile in ((128, 1), (256, 2), (1024, 8)):
        monkeypatch.setattr(forward, "combine_tile", lambda *_, tile=tile: tile)
        seen.append(launch_combine(out.view(-1, hidden), weights))
        torch.testing.assert_close(seen[-1], expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
