"""The rows of a CSV: what may stand in one, and which of them stand."""

import pytest
from store_rows import ROW

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import NOT_DEVICES
from tritonmoe_bench.experiments.measure import documentation
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.columns import Column, declare, names
from tritonmoe_bench.experiments.table.store import Store


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "allowed are ok"),
        ({"status": "oom", "reason": "full"}, "carries timings"),
        ({"status": "oom", "p50_us": None}, "needs a reason"),
        ({"p50_us": float("nan")}, "p50_us=nan"),
        ({"rel_error": float("inf")}, "rel_error=inf"),
        ({"p50_us": 0.0}, "p50_us=0.0: must be above 0"),
        ({"p20_us": -1.0}, "p20_us=-1.0: must be above 0"),
        ({"rel_error": -0.1}, "rel_error=-0.1: must be at least 0"),
        ({"run_id": ""}, "it has no run_id"),
        ({"latency": 3}, "unknown columns"),
    ],
)
def test_a_row_that_no_csv_may_hold_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "a.csv", Layer.columns).append([{**ROW, **changes}])
    assert not (tmp_path / "a.csv").exists()


def test_rows_come_back_and_the_last_of_a_key_stands(tmp_path):
    path = tmp_path / "a.csv"
    Store(path, Layer.columns).append([ROW])
    Store(path, Layer.columns).append([{**ROW, "p50_us": 4.5, "reason": 'with "quotes", and\nlines'}])
    Store(path, Layer.columns).append([{**ROW, "launch": "eager"}])
    frame = store.read(path)
    assert sorted(frame["p50_us"]) == [3.5, 4.5]
    assert len(frame) == 2


def test_no_file_is_an_empty_frame(tmp_path):
    assert store.read(tmp_path / "none.csv").empty


def test_compacting_keeps_the_last_row_of_a_key_and_drops_what_a_kill_tore(tmp_path):
    path = tmp_path / "a.csv"
    for latency in (1.5, 2.5):
        Store(path, Layer.columns).append([{**ROW, "p50_us": latency}])
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("r1,adhoc,tiny")
    Store(path, Layer.columns).append([{**ROW, "launch": "eager"}])
    before = store.read(path)
    Store(path, Layer.columns).compact()
    after = store.read(path)
    assert path.read_text(encoding="utf-8").count("\n") == 3
    assert after[["launch", "p50_us"]].equals(before[["launch", "p50_us"]])
    assert sorted(after["p50_us"]) == [2.5, 3.5]


def test_a_file_of_an_older_schema_keeps_its_rows_beside_the_new_ones(tmp_path):
    path = tmp_path / "a.csv"
    older = [column for column in Layer.columns if column.name != "active_experts"]
    Store(path, older).append([ROW])
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("r1,adhoc,tiny")
    Store(path, Layer.columns).append([{**ROW, "launch": "eager", "active_experts": 7}])
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(names(Layer.columns))
    frame = store.read(path).set_index("launch")
    assert frame.loc["graph", "p50_us"] == frame.loc["eager", "p50_us"] == 3.5
    assert frame["active_experts"].fillna(0).to_dict() == {"graph": 0, "eager": 7}


def test_every_committed_row_could_be_written_today(capsys):
    for path in sorted((ROOT / "results").glob("*/*.csv")):
        if path.parent.name not in NOT_DEVICES:
            assert len(store.read(path, ())) == path.read_text(encoding="utf-8").count("\n") - 1, path
    assert capsys.readouterr().err == ""


def test_a_csv_with_the_hashes_of_older_versions_is_read_and_written_on(tmp_path):
    path = tmp_path / "a.csv"
    Store(path, Layer.columns).append([ROW])
    first, row = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first},code_hash\n{row},0123abcd\n", encoding="utf-8")
    assert "code_hash" not in store.read(path)
    Store(path, Layer.columns).append([{**ROW, "launch": "eager"}])
    assert path.read_text(encoding="utf-8").splitlines()[0] == first
    assert list(store.read(path)["launch"]) == ["graph", "eager"]


def test_new_rows_take_the_place_of_those_that_agree_in_some_columns(tmp_path):
    path = tmp_path / "a.csv"
    rows = Store(path, Layer.columns)
    rows.append([ROW, {**ROW, "launch": "eager"}, {**ROW, "run_id": "r0"}])
    rows.replace([{**ROW, "p50_us": 7.0}], ["case_hash", "implementation"])
    assert list(zip(*(store.read(path)[name] for name in ("run_id", "launch", "p50_us")))) == [
        ("r0", "graph", 3.5),
        ("r1", "graph", 7.0),
    ]


def test_a_row_that_is_refused_takes_none_of_its_case_with_it_to_disk(tmp_path):
    rows = Store(tmp_path / "a.csv", Layer.columns)
    rows.append([ROW])
    for write in (rows.append, lambda new: rows.replace(new, ["case_hash"])):
        with pytest.raises(ValueError, match="must be above 0"):
            write([{**ROW, "launch": "eager"}, {**ROW, "p50_us": -1.0}])
    assert len(rows.read()) == 1


def test_columns_of_one_name_have_one_type():
    with pytest.raises(ValueError, match="column p50_us is float in another table"):
        declare([Column("p50_us", str, "made up")])


def test_the_text_on_the_columns_is_that_of_the_code():
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == documentation.text()
