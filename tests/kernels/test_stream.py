"""The streaming limit: it reads every word of the active experts once, and nothing of the others."""

import pytest
import torch

from tritonmoe_bench.kernels.stream import StreamTile, stream

TILES = [StreamTile(64, 1, 4), StreamTile(16, 3, 4)]


def words(device, experts=6, size=150):
    return torch.arange(experts * size, dtype=torch.int32, device=device).reshape(experts, size)


@pytest.mark.parametrize("tile", TILES)
def test_the_sums_are_those_of_the_active_experts(tile, device):
    weights, active = words(device), torch.tensor([4, 1, 5], dtype=torch.int32, device=device)
    sums = stream(weights, active, tile).reshape(len(active), -1).sum(1)
    assert sums.tolist() == weights[active.long()].sum(1).tolist()


@pytest.mark.parametrize(
    ("weights", "active", "message"),
    [
        (lambda w: w.float(), lambda a: a, "weights must be a contiguous int32 matrix"),
        (lambda w: w.t(), lambda a: a, "weights must be a contiguous int32 matrix"),
        (lambda w: w, lambda a: a.long(), "active must be a non-empty int32 vector"),
        (lambda w: w, lambda a: a[:0], "active must be a non-empty int32 vector"),
        (lambda w: w, lambda a: a[::2], "active must be contiguous"),
        (lambda w: w, lambda a: a.to("meta"), "active must be contiguous on .*, got .* on meta"),
    ],
)
def test_other_layouts_are_refused(weights, active, message, device):
    with pytest.raises(ValueError, match=message):
        stream(weights(words(device)), active(torch.arange(4, dtype=torch.int32, device=device)), TILES[0])
