"""`fast` against the best of its peers, from made-up rows."""

import pandas as pd

from tritonmoe_bench.experiments.analysis.headline import against_best, peers, standing


def rows(**latency_us):
    """A row of each system, by name; 8-bit activations where the name ends in a8."""
    return pd.DataFrame([
        {
            "study": "quant", "run_id": "a", "case_hash": "case", "model": "gpt_oss_20b", "num_experts": 32,
            "dtype": "bf16", "gating": "softmax", "tokens": 512, "skew": 0.0, "quant": "mxfp4", "implementation": name,
            "launch": "graph", "status": "ok", "reason": "", "activations": "a8" if name.endswith("a8") else "a16",
            "p50_us": us, "p20_us": us, "p80_us": us,
        }
        for name, us in latency_us.items()
    ])  # fmt: skip


def best(**latency_us):
    frame = rows(**latency_us)
    [pair] = against_best(frame, peers(frame)).itertuples()
    return pair.other, pair.ratio, pair.activations


def test_8_bit_activations_stand_against_8_bit_activations():
    assert best(fast=400.0, fast_a8=250.0, humming=500.0, humming_a8=300.0) == ("humming_a8", 1.2, "a8")


def test_no_8_bit_activations_of_ours_help_against_a_peer_with_16():
    assert best(fast=400.0, fast_a8=100.0, humming=300.0, humming_a8=500.0) == ("humming", 0.75, "a16")


def test_16_bit_activations_of_ours_that_are_faster_stand_against_8():
    assert best(fast=200.0, fast_a8=250.0, humming_a8=300.0) == ("humming_a8", 1.5, "a16")


def test_without_the_other_of_ours_fast_stands_alone():
    assert best(fast=400.0, humming=500.0, humming_a8=300.0) == ("humming_a8", 0.75, "a16")


def test_nothing_stands_where_fast_was_not_timed():
    frame = rows(humming=500.0)
    assert against_best(frame, peers(frame)).empty
    assert standing(against_best(frame, peers(frame))) is None
