"""The timing function: what can be told without a GPU, and on one that it measures what it says."""

import pytest
import torch

from tritonmoe_bench.experiments.measure.timing import TimingSettings, matrix_tflops, quantile, time_calls, weight_sets

SETTINGS = TimingSettings()
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def test_weight_sets_make_a_chain_four_times_the_l2():
    l2 = 50 << 20
    assert weight_sets(active_bytes=4 * l2, l2_bytes=l2, total_bytes=8 * l2, settings=SETTINGS) == 1
    assert weight_sets(active_bytes=l2, l2_bytes=l2, total_bytes=8 * l2, settings=SETTINGS) == 4
    assert weight_sets(active_bytes=l2 // 8, l2_bytes=l2, total_bytes=l2, settings=SETTINGS) == 32, "6 MB"
    assert weight_sets(active_bytes=l2 // 100, l2_bytes=l2, total_bytes=l2, settings=SETTINGS) == 0
    assert weight_sets(active_bytes=l2, l2_bytes=l2, total_bytes=30 << 30, settings=SETTINGS) == 0


def test_quantiles_interpolate():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([5.0], 0.8) == 5.0
    assert quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("launch", ["graph", "eager"])
@pytest.mark.parametrize("flush", [False, True])
def test_a_copy_of_known_size_takes_a_time_that_memory_allows(launch, flush):
    source, target = (torch.empty(1 << 28, dtype=torch.int8, device="cuda") for _ in range(2))
    timing = time_calls([lambda: target.copy_(source)], launch, SETTINGS, flush=flush)
    assert timing.p20_us <= timing.p50_us <= timing.p80_us
    assert timing.samples >= SETTINGS.min_samples
    terabytes_per_s = 2 * source.numel() / timing.p50_us / 1e6
    assert 0.2 < terabytes_per_s < 20


@on_gpu
@pytest.mark.gpu
def test_a_wrong_output_stops_before_anything_is_timed():
    x = torch.ones(8, device="cuda")

    def refuse(output):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        time_calls([lambda: x + 1], "graph", SETTINGS, verify=refuse)


@on_gpu
@pytest.mark.gpu
def test_the_matrix_rate_is_that_of_a_gpu():
    assert 5 < matrix_tflops(torch.bfloat16, "cuda") < 10000
