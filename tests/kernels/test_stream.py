"""The streaming limit: it reads every word of the active experts once, and nothing of the others."""

import pytest
import torch

from tritonmoe_bench.kernels.stream import StreamTile, stream
from tritonmoe_bench.kernels.stream_ordered import stream_ordered

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


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("first", [0, 1, 64, 100, 149])
def test_the_sums_in_order_are_the_same(tile, first, device):
    if first and torch.version.hip:
        pytest.skip("one grid needs a GPU of NVIDIA's")
    weights, active = words(device), torch.tensor([4, 1, 5], dtype=torch.int32, device=device)
    for _ in range(2):
        arrivals = torch.zeros(4, dtype=torch.int32, device=device)
        assert stream_ordered(weights, active, tile, first, arrivals).sum() == weights[active.long()].sum()


def test_programs_behind_wait_for_all_of_their_expert(device):
    weights, active = words(device), torch.tensor([4, 1, 5], dtype=torch.int32, device=device)
    arrivals = torch.zeros(3, dtype=torch.int32, device=device)
    stream_ordered(weights, active, TILES[0], 100, arrivals)
    assert arrivals.tolist() == [2, 2, 2]  # 100 words in programs of 64


@pytest.mark.parametrize(("first", "arrivals"), [(150, 3), (-1, 3), (100, None), (100, 2)])
def test_an_order_needs_words_behind_and_a_counter_for_each_expert(first, arrivals, device):
    counters = None if arrivals is None else torch.zeros(arrivals, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="first must be below 150 words"):
        stream_ordered(words(device), torch.arange(3, dtype=torch.int32, device=device), TILES[0], first, counters)
