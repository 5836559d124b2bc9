"""Rows of one run on several cards: how fast each is, and what of a difference is the card's."""

import pandas as pd
import pytest

from tritonmoe_bench.experiments.analysis.compare import compare
from tritonmoe_bench.experiments.analysis.headline import relative
from tritonmoe_bench.experiments.table.card_speed import CARD_US, processes, reads, slower, with_cards
from tritonmoe_bench.experiments.table.limits import with_limits


def row(implementation, card, p50_us=100.0, stamp="2026-01-01T00:00:00Z", **other):
    return {
        "run_id": "r", "study": "headline", "case_hash": "c", "model": "m", "dtype": "bf16", "num_experts": 8,
        "tokens": 1, "skew": 0.0, "implementation": implementation, "launch": "graph", "status": "ok", "reason": "",
        "flops": 1.0,
        "device_uuid": card, "git_commit": "a", "timestamp_utc": stamp,
        "p50_us": p50_us, "p20_us": p50_us, "p80_us": p50_us, **other,
    }  # fmt: skip


def process(implementation, before, after=None, **other):
    return {"implementation": implementation, "stream_before_us": before, "stream_after_us": after, **other}


LATER = "2026-01-02T00:00:00Z"
ROWS = pd.DataFrame([row("fast", "new", 97.0, LATER), row("vllm", "old", 110.0), row("stream", "old", 90.0)])
RECORD = {"processes": [process("vllm", 240.0, 239.0), process("stream", 241.0), process("fast", 233.0, 250.0)]}


def test_a_card_has_the_shorter_reads_of_its_processes():
    assert reads(ROWS, RECORD) == {"new": 233.0, "old": 240.0}
    assert with_cards(ROWS, RECORD)[CARD_US].tolist() == [233.0, 240.0, 240.0]
    assert with_cards(ROWS, {})[CARD_US].isna().all()
    assert CARD_US not in with_cards(ROWS.drop(columns="device_uuid"), RECORD)


def test_a_process_that_names_its_card_is_believed():
    named = {"processes": [process("fast", 200.0, device_uuid="new"), process("vllm", 240.0, device_uuid="old")]}
    assert processes(ROWS, named) == [("new", 200.0, True), ("old", 240.0, True)]


def test_of_more_processes_than_cards_the_last_ones_count_where_nothing_else_says_more():
    record = {"processes": [process("fast", 250.0), process("fast", 233.0)]}
    assert processes(ROWS, record) == [("", 250.0, False), ("new", 233.0, False)]
    assert reads(ROWS, record) == {"new": 233.0}
    both = pd.concat([ROWS, pd.DataFrame([row("vllm", "new", stamp=LATER)])])
    record["processes"] += [process("vllm", 240.0), process("vllm", 230.0)]
    assert reads(both, record) == {"new": 230.0, "old": 240.0}  # of vllm, as many as cards
    assert processes(pd.DataFrame(), record)[0] == ("", 250.0, False)


def test_two_systems_on_two_cards_are_compared_as_if_on_one():
    (pair,) = compare(with_cards(ROWS, RECORD), "fast", ["vllm"], "graph").itertuples()
    assert pair.ratio == pytest.approx(110 / 97 * 233 / 240)
    assert (pair.low, pair.high) == (pytest.approx(pair.ratio), pytest.approx(110 / 97))  # it need not all be memory
    (raw,) = compare(ROWS, "fast", ["vllm"], "graph").itertuples()
    assert raw.ratio == pytest.approx(110 / 97)


def test_a_rank_is_as_if_on_one_card():
    ranks = relative(with_cards(ROWS, RECORD)).set_index("implementation")
    assert ranks.loc["fast", "ratio"] == 1
    assert ranks.loc["vllm", "ratio"] == pytest.approx(110 / 97 * 233 / 240)
    assert ranks["same"].to_dict() == {"stream": True, "fast": True, "vllm": False}
    near = pd.DataFrame([row("fast", "new", 97.0, LATER), row("vllm", "old", 99.0)])
    ranks = relative(with_cards(near, RECORD)).set_index("implementation")
    assert ranks.loc["vllm", "ratio"] == 1  # its card is slower by more
    assert ranks["same"].all()  # as it is not faster without that


def test_the_limit_of_a_row_is_that_of_its_card():
    limited = with_limits(with_cards(ROWS, RECORD), {}).set_index("implementation")
    assert limited["stream_us"].to_dict() == {"fast": pytest.approx(90 * 233 / 240), "vllm": 90.0, "stream": 90.0}


def test_cards_that_nothing_is_known_of_are_alike():
    assert slower(ROWS).tolist() == [1.0] * 3
    both = ROWS.assign(**{CARD_US: [233.0, float("nan"), 1.0], f"{CARD_US}_other": [240.0, 240.0, 1.0]})
    assert slower(both).tolist() == [pytest.approx(233 / 240), 1.0, 1.0]
