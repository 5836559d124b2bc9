"""The report's table of few tokens on many small experts."""

import pytest
from claim_rows import frame, row

from tritonmoe_bench.experiments.reporting.granular import granular_table


def point(tokens, skew, fast, stream, vllm=None, **other):
    shared = {"study": "granular", "dtype": "bf16", "quant": "none", "tokens": tokens, "skew": skew,
              "stream_us": stream, "launch": "graph", **other}  # fmt: skip
    systems = {"fast": fast, "vllm": vllm}
    return [row(name, latency, **shared) for name, latency in systems.items() if latency is not None]


def test_a_line_says_how_near_to_the_reading_and_how_far_ahead():
    rows = frame([
        *point(1, 0.0, 14.0, 10.0, 21.0), *point(8, 0.0, 20.0, 16.0, 20.0), *point(1, 2.0, 30.0, 10.0, 15.0),
        *point(1, 0.0, 9.0, 6.0, model="kimi_k2", quant="fp8_block"),
    ])  # fmt: skip
    table = granular_table(rows)
    assert table.header[4:6] == ["fast / reading, skew 0", "fast / reading, skew 2"]
    plain, packed = table.rows
    assert plain[:4] == ["Mixtral-8x7B", "16 bits", "10.0", "4.0"]
    assert [float(cell) for cell in plain[4:7]] == pytest.approx([(1.4 * 1.25) ** 0.5, 3.0, 0.75 ** (1 / 3)], abs=0.005)
    assert plain[7] == "1, 1, 1"
    assert packed == ["Kimi-K2", "fp8_block", "6.0", "3.0", "1.50", "-", "-", "-"]


def test_without_fast_or_a_limit_there_is_none():
    rows = frame(point(1, 0.0, 14.0, 10.0, 21.0))
    assert granular_table(rows[rows["implementation"] != "fast"]) is None
    assert granular_table(rows.assign(stream_us=None)) is None
    assert granular_table(rows.head(0)) is None
