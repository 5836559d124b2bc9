"""The combine of `fast`: sums of a token's outputs, whatever the program that a GPU has for them."""

import pytest
import torch

from tritonmoe_bench.kernels.fast import forward
from tritonmoe_bench.kernels.fast.forward import combine_tile, launch_combine


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
