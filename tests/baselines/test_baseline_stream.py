"""`stream`: which tile it takes, and from which readings on."""

from types import SimpleNamespace

import pytest
import torch

from tritonmoe_bench.baselines.stream import SMALL, Stream, fastest_tile
from tritonmoe_bench.experiments.measure import timing
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.kernels import stream as kernels

ROW_BYTES = 1 << 20


@pytest.fixture
def timed(monkeypatch):
    """What was timed: by tile, (the rows that each call reads, the launch, whether the L2 is flushed)."""
    seen = {}

    def time_calls(calls, launch, settings, *, flush):
        (tile,) = {call()[1] for call in calls}
        seen[tile] = ([call()[0] for call in calls], launch, flush)
        return SimpleNamespace(p50_us=10.0 if tile is kernels.STREAM_TILES[3] else 11.0)

    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(kernels, "stream", lambda flat, rows, tile: (rows, tile))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=10 * ROW_BYTES))
    return seen


def flat(rows):
    return torch.empty((1, 1), dtype=torch.int32).expand(rows, ROW_BYTES // 4)


@pytest.mark.parametrize(
    ("rows", "count", "reads", "flush"),
    [(64, 5, 8, False), (128, 40, 1, False), (64, 24, 2, False), (16, 5, 1, True)],
)
def test_tiles_are_compared_cold_and_in_a_graph(timed, rows, count, reads, flush):
    assert fastest_tile(flat(rows), count) is kernels.STREAM_TILES[3]
    assert set(timed) == set(kernels.STREAM_TILES)
    for read, launch, flushed in timed.values():
        assert (launch, flushed, len(read)) == ("graph", flush, reads)
        assert all(len(turn) == count and turn.dtype == torch.int32 for turn in read)
        assert torch.cat(read).tolist() == list(range(reads * count)), "each row once"
        assert reads * count <= rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("rows", "count"), [(512, 8), (128, 8), (16, 16)])
def test_a_tile_is_found_on_a_gpu_and_reads_every_word(rows, count):
    words = torch.randint(-(2**31), 2**31 - 1, (rows, 1 << 18), dtype=torch.int32, device="cuda")
    best = fastest_tile(words, count)
    assert best in kernels.STREAM_TILES
    read = torch.arange(rows - 1, rows - 1 - count, -1, dtype=torch.int32, device="cuda")
    sums = kernels.stream(words, read, best).view(count, -1).sum(1, dtype=torch.int32)
    assert torch.equal(sums, words[read.long()].sum(1, dtype=torch.int32))


def test_small_readings_have_a_revision_of_their_own():
    def of(tokens):
        case = Case("one", 64, 4, 1024, 1024, tokens=tokens, skew=0.0, gating="softmax", dtype="bf16")
        return case.expert_bytes, Stream().revision_of(case)

    expert_bytes, few = of(1)
    assert 4 * expert_bytes < SMALL < 60 * expert_bytes
    assert (few, of(128)[1]) == (3, Stream.revision)
