"""The rows of a CSV: what may stand in one, and that a kill tears none that was finished."""

import pytest

from tritonmoe_bench.experiments import schema

ROW = {"run_id": "r1", "case_hash": "abc", "implementation": "x", "launch": "graph", "status": "ok", "p50_us": 3.5,
       "timestamp_utc": "2026-01-01T00:00:00Z"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "allowed are ok"),
        ({"status": "oom", "reason": "full"}, "carries timings"),
        ({"status": "oom", "p50_us": None}, "needs a reason"),
        ({"p50_us": float("nan")}, "p50_us=nan"),
        ({"rel_error": float("inf")}, "rel_error=inf"),
        ({"p50_us": 0.0}, "a latency is positive"),
        ({"latency": 3}, "unknown columns"),
    ],
)
def test_a_row_that_no_csv_may_hold_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        schema.append(tmp_path / "a.csv", {**ROW, **changes})
    assert not (tmp_path / "a.csv").exists()


def test_rows_come_back_and_the_last_of_a_key_stands(tmp_path):
    path = tmp_path / "a.csv"
    schema.append(path, ROW)
    schema.append(path, {**ROW, "p50_us": 4.5, "reason": 'with "quotes", and\nlines'})
    schema.append(path, {**ROW, "launch": "eager"})
    frame = schema.read(path)
    assert sorted(frame["p50_us"]) == [3.5, 4.5]
    assert len(frame) == 2


def test_a_line_torn_by_a_kill_is_left_out_and_the_next_row_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    schema.append(path, ROW)
    with open(path, "a") as handle:
        handle.write("r1,adhoc,tiny,8,2")
    schema.append(path, {**ROW, "launch": "eager", "p50_us": 9.0})
    frame = schema.read(path)
    assert dict(zip(frame["launch"], frame["p50_us"])) == {"graph": 3.5, "eager": 9.0}


def test_no_file_is_an_empty_frame(tmp_path):
    assert schema.read(tmp_path / "none.csv").empty


def test_compacting_keeps_the_last_row_of_a_key_and_drops_what_a_kill_tore(tmp_path):
    path = tmp_path / "a.csv"
    for latency in (1.5, 2.5):
        schema.append(path, {**ROW, "p50_us": latency})
    with open(path, "a") as handle:
        handle.write("r1,adhoc,tiny")
    schema.append(path, {**ROW, "launch": "eager"})
    before = schema.read(path)
    schema.compact(path, schema.ROW_KEY)
    after = schema.read(path)
    assert path.read_text().count("\n") == 3
    assert after[["launch", "p50_us"]].equals(before[["launch", "p50_us"]])
    assert sorted(after["p50_us"]) == [2.5, 3.5]


def test_a_file_of_an_older_schema_keeps_its_rows_beside_the_new_ones(tmp_path):
    path = tmp_path / "a.csv"
    older = tuple(name for name in schema.ROW_COLUMNS if name != "active_experts")
    schema.append(path, ROW, older)
    with open(path, "a") as handle:
        handle.write("r1,adhoc,tiny")
    schema.append(path, {**ROW, "launch": "eager", "active_experts": 7})
    assert path.read_text().splitlines()[0] == ",".join(schema.ROW_COLUMNS)
    frame = schema.read(path).set_index("launch")
    assert frame.loc["graph", "p50_us"] == frame.loc["eager", "p50_us"] == 3.5
    assert frame["active_experts"].fillna(0).to_dict() == {"graph": 0, "eager": 7}
