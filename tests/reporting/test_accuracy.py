"""The report's table of errors: medians and most over PyTorch's own, by system and by dtype or format."""

import pandas as pd

from tritonmoe_bench.experiments.reporting.accuracy import accuracy_table

ROW = {"study": "headline", "status": "ok", "dtype": "bf16", "quant": "none", "torch_rel_error": 0.004,
       "implementation": "fast"}  # fmt: skip


def frame(*changes):
    rows = [ROW | {"case_hash": str(place), "rel_error": 0.004} | change for place, change in enumerate(changes)]
    return pd.DataFrame(rows)


def test_a_cell_has_the_median_and_the_most():
    rows = frame({"rel_error": 0.002}, {"rel_error": 0.003}, {"rel_error": 0.006}, {"dtype": "fp16"})
    packed = frame({"quant": "int4", "implementation": "vllm", "study": "quant"})
    table = accuracy_table({"headline": rows, "throughput": pd.DataFrame(), "quant": packed})
    assert table.header == ["system", "bf16 (3)", "fp16 (1)", "int4 (1)"]
    assert table.rows == [["fast", "0.75 (1.50)", "1.00 (1.00)", "-"], ["vLLM", "-", "-", "1.00 (1.00)"]]


def test_rows_without_an_error_the_limit_and_second_launch_modes_do_not_count():
    rows = frame(
        {}, {"case_hash": "0", "rel_error": 0.1}, {"status": "error", "rel_error": None}, {"implementation": "stream"}
    )
    assert accuracy_table({"headline": rows}).rows == [["fast", "1.00 (1.00)"]]
    assert accuracy_table({"headline": rows.iloc[2:]}) is None
    assert accuracy_table({}) is None


def test_of_the_decode_study_only_its_own_two_ways_stand():
    rows = frame({}, {"implementation": "fastvariant_output_centric"})
    assert [row[0] for row in accuracy_table({"decode": rows}).rows] == ["fastvariant_output_centric"]
