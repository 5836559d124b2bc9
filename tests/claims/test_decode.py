"""The claims on warp decode and on fused routing, each decided both ways by a few made-up rows."""

import pytest
from claim_rows import decoded, fused, small, texts, verdict

from tritonmoe_bench.experiments.claims import Verdict


@pytest.mark.parametrize(
    ("speedup", "share", "expected"),
    [
        (lambda *_: 1.9, 0.6, "holds"),
        (lambda *_: 1.82, 0.6, "holds"),  # inside the noise
        (lambda *_: 1.9, 0.5, "does not hold"),
        (small(1.9, 1.2), 0.9, "does not hold"),  # faster, and not by as much at the batch size of the claim
        (small(1.1, 0.3), 0.9, "does not hold"),
        (lambda *_: 1.01, 0.9, "does not hold"),  # faster inside the noise only
        (lambda *_: 0.5, 0.9, "does not hold"),
        (lambda model, _: 1.9 if model == "mixtral" else 0.5, 0.9, "does not hold"),
    ],
)
def test_warp_decode_throughput(speedup, share, expected):
    assert verdict("warp-decode-throughput", decoded(speedup, share)) == expected


def test_warp_decode_says_where_the_paths_cross():
    told = texts("warp-decode-throughput", decoded(small(2.0, 0.5), tokens=(1, 16, 32)))
    assert "cross on mixtral at about 4.0 tokens, on qwen3_30b_a3b at about 4.0 tokens." in told.sentence
    assert "faster than the expert-centric one at 2 of 6 points, slower at 4" in told.sentence
    assert "ahead up to 1 token. The two paths" in told.sentence
    assert verdict("warp-decode-throughput", decoded(small(2.0, 0.5), tokens=(1, 16))) == "undecided"
    told = texts("warp-decode-throughput", decoded(lambda *_: 2.0))
    assert "on mixtral nowhere (always ahead), on" in told.sentence
    assert "speed-up 2.00 at 60 % of the read limit" in told.measured


@pytest.mark.parametrize(
    ("error", "expected"), [(1.4, "holds"), (1.5, "holds"), (1.2, "does not hold"), (0.9, "does not hold")]
)
def test_warp_decode_accuracy(error, expected):
    assert verdict("warp-decode-accuracy", decoded(lambda *_: 1.0, error=error + 1e-9)) == expected


def test_warp_decode_accuracy_compares_the_errors_of_each_point():
    rows = decoded(lambda *_: 1.0, error=1.5, models=("mixtral",)) + decoded(
        lambda *_: 1.0, error=0.5, models=("qwen2",)
    )
    told = texts("warp-decode-accuracy", rows)
    assert told.verdict is Verdict.IN_PART
    assert "closer to the float32 reference at 2 of 4 points, and 1.4 times closer or more at 2" in told.sentence
    assert told.measured == "mixtral: 1.50; qwen2: 0.50"


@pytest.mark.parametrize(
    ("ratio", "again", "config", "expected"),
    [
        (lambda _: 1.0, 1.0, "tiles", "holds"),
        (lambda _: 1.015, 1.0, "tiles", "holds"),  # inside p20 to p80
        (lambda _: 1.05, 1.0, "tiles", "does not hold"),
        (lambda _: 0.95, 1.0, "tiles", "does not hold"),
        (lambda _: 1.05, 1.06, "tiles", "holds"),  # two processes differ by more
        (lambda _: 1.05, 1.06, "others", "does not hold"),  # but not with other tiles
        (lambda tokens: 1.0 if tokens == 1 else 1.2, 1.0, "tiles", "holds in part"),
    ],
)
def test_fused_routing_neutral(ratio, again, config, expected):
    rows = fused(ratio, again, config)
    told = texts("fused-routing-neutral", rows)
    assert told.verdict.value == expected


def test_fused_routing_says_how_far_two_processes_differ():
    rows = fused(lambda tokens: 1.2, again=0.95)
    told = texts("fused-routing-neutral", rows)
    assert "faster at 2 and slower at 0" in told.sentence
    assert "differ by up to 5.3 % at 2 points." in told.sentence
    alone = [values for values in rows if values["implementation"] != "fast"]
    told = texts("fused-routing-neutral", alone)
    assert "differ by an amount that was not measured." in told.sentence
