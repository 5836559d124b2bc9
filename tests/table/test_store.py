"""The rows of a CSV: what may stand in one, that a kill tears none that was finished, and what a damaged file says."""

import errno
import json
import os

import pandas as pd
import pytest

from tritonmoe_bench import ROOT
from tritonmoe_bench.experiments.analysis.results import NOT_DEVICES
from tritonmoe_bench.experiments.measure import documentation
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.columns import Column, declare, names
from tritonmoe_bench.experiments.table.run import SAME_RUN, Run
from tritonmoe_bench.experiments.table.store import Store
from tritonmoe_bench.experiments.workload.case import Case

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


def test_a_line_torn_by_a_kill_is_left_out_and_the_next_row_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    Store(path, Layer.columns).append([ROW])
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("r1,adhoc,tiny,8,2")
    Store(path, Layer.columns).append([{**ROW, "launch": "eager", "p50_us": 9.0}])
    frame = store.read(path)
    assert dict(zip(frame["launch"], frame["p50_us"])) == {"graph": 3.5, "eager": 9.0}


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


WHOLE = {**ROW, "tokens": 8, "reason": "ö"}


def damage(path, number, change):
    """Replaces a line, the first is 1, of a CSV of three rows."""
    for latency, launch in ((1.5, "graph"), (2.5, "eager"), (3.5, "other")):
        Store(path, Layer.columns).append([{**WHOLE, "p50_us": latency, "launch": launch}])
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"\n".join(lines))


BAD_LINES = [
    (lambda line: b"garbage", f"it has 1 of {len(Layer.columns)} fields"),
    (lambda line: b'"garbage', "it is not CSV in UTF-8"),
    (lambda line: line + b",more", f" of {len(Layer.columns)} fields"),
    (lambda line: line[:30], f" of {len(Layer.columns)} fields"),
    (lambda line: line.replace("ö".encode(), b"\xff"), "it is not CSV in UTF-8"),
    (lambda line: line.replace(b"2.5", b"abc"), "p50_us=abc is no number"),
    (lambda line: line.replace(b",8,", b",abc,"), "tokens=abc is no whole number"),
    (lambda line: line.replace(b",8,", b",8.5,"), "tokens=8.5 is no whole number"),
    (lambda line: line.replace(b",ok,", b",fine,"), "status=fine: allowed are ok"),
    (lambda line: line.replace(b"2026-01-01T00:00:00Z", b""), "it has no timestamp_utc"),
]


@pytest.mark.parametrize(("change", "fault"), BAD_LINES)
def test_a_line_that_cannot_be_read_is_told_once_and_left_out(change, fault, tmp_path, capsys):
    path = tmp_path / "a.csv"
    damage(path, 3, change)
    frame = store.read(path)
    store.read(path)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} line 3: ")
    assert fault in line
    assert line.endswith("this row is left out")
    assert list(frame["launch"]) == ["graph", "other"]
    assert frame["tokens"].dtype == "int64"
    assert frame["p50_us"].dtype == "float64"
    Store(path, Layer.columns).append([{**WHOLE, "p50_us": 2.5, "launch": "eager"}])
    Store(path, Layer.columns).compact()
    assert len(pd.read_csv(path)) == 3


def test_a_torn_last_line_is_left_out_without_a_word(tmp_path, capsys):
    path = tmp_path / "a.csv"
    damage(path, 4, lambda line: line[:-40])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert list(store.read(path)["launch"]) == ["graph", "eager"]
    Store(path, Layer.columns).append([{**WHOLE, "launch": "other"}])
    assert len(store.read(path)) == 3
    assert capsys.readouterr().err == ""


def test_a_last_row_that_only_lacks_its_end_is_kept(tmp_path):
    path = tmp_path / "a.csv"
    damage(path, 4, bytes)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(store.read(path)) == 3
    Store(path, Layer.columns).append([{**WHOLE, "launch": "fourth"}])
    assert len(store.read(path)) == 4


def test_an_empty_file_is_told_and_the_next_row_has_its_header(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("", encoding="utf-8")
    assert store.read(path).empty
    assert f"warning: {path} is empty" in capsys.readouterr().err
    assert store.header(path) == []
    Store(path, Layer.columns).append([ROW])
    assert len(store.read(path)) == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda line: b"", "it lacks run_id, case_hash"),
        (lambda line: b"\xff\xfe", "it lacks run_id, case_hash"),
        (lambda line: line.replace(b"p50_us", b"p50_uss"), "has columns that no study has: p50_uss"),
        (lambda line: line.replace(b"launch,", b"", 1), "it lacks launch"),
    ],
)
def test_a_header_that_is_lost_or_misspelt_is_one_line_with_a_remedy(change, fault, tmp_path):
    path = tmp_path / "a.csv"
    damage(path, 1, change)
    before = path.read_bytes()
    with pytest.raises(store.Damaged) as raised:
        store.read(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: line 1")
    assert fault in text
    assert text.endswith("restore it from git, or move it away and make it anew")
    if "launch" not in fault:  # a file of an older schema may lack columns
        with pytest.raises(store.Damaged):
            Store(path, Layer.columns).append([ROW])
        assert path.read_bytes() == before


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_a_broken_json_is_one_line_that_names_it(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(store.Damaged, match=r"^\S+a\.json: no JSON.*restore it from git"):
        store.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", [b"", b"a,b\n1,2,3,4\n5\n6,7,8,9,10\n", b"\xff\n", b"b\n1\n"])
def test_a_broken_table_is_one_line_that_names_it(text, tmp_path):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(store.Damaged, match=r"^\S+a\.csv: .*restore it from git"):
        store.read_table(tmp_path / "a.csv", ["a"])


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as raised:
        Store(tmp_path / "a.csv", Layer.columns).append([ROW])
    assert raised.value.filename == str(tmp_path / "a.csv")


ENVIRONMENT = dict.fromkeys(SAME_RUN, "1") | {"device": "made-up-gpu"}
CASE = Case("tiny", 8, 2, 128, 256, 4)


def measured(launch):
    return {**{name: ROW[name] for name in ("implementation", "status", "p50_us")}, "implementation_version": "1",
            "revision": 1, "method_revision": "m", "launch": launch}  # fmt: skip


def test_a_run_does_a_point_of_a_damaged_line_again_and_drops_the_line(tmp_path, capsys):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    run.put(CASE, [measured("graph"), measured("eager")])
    assert run.done("x", ["graph", "eager"])
    lines = run.path.read_text(encoding="utf-8").splitlines()
    run.path.write_text("\n".join([lines[0], "garbage", lines[2]]) + "\n", encoding="utf-8")
    assert not run.done("x", ["graph", "eager"])
    assert run.done("x", ["eager"])
    assert f"{run.path} line 2" in capsys.readouterr().err
    run.put(CASE, [measured("graph")])
    run.finish()
    assert run.done("x", ["graph", "eager"])
    assert len(pd.read_csv(run.path)) == 2


def test_a_run_is_refused_before_it_measures_where_its_files_are_damaged(tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    run.put(CASE, [measured("graph")])
    whole, record = run.path.read_text(encoding="utf-8"), run.path.with_suffix(".json")
    run.path.write_text(whole.replace("p50_us", "p50_uss", 1), encoding="utf-8")
    del run
    with pytest.raises(store.Damaged, match="p50_uss"):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    assert Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT, new=True).record["run_id"]
    record.write_text("{", encoding="utf-8")
    with pytest.raises(store.Damaged, match=record.name):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    record.write_text(json.dumps({}), encoding="utf-8")
    assert Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT).record["run_id"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda line: line.replace(b"2.5", b"-5.0"), "p50_us=-5.0: must be above 0"),
        (lambda line: line.replace(b"2.5", b"inf"), "p50_us=inf: leave out what is not known"),
        (lambda line: line.replace(b"2.5", b"nan"), "p50_us=nan is no number"),
        (lambda line: line.replace(b",ok,", b",error,"), "a row with status error carries timings: p50_us"),
        (lambda line: line.replace(b",8,", b",-8,"), "tokens=-8: must be above 0"),
        (lambda line: line.replace(b"abc", b""), "it has no case_hash"),
        (lambda line: line.replace("ok,ö,2.5".encode(), b"error,,"), "a row with status error needs a reason"),
    ],
)
def test_a_row_that_could_not_have_been_written_is_not_read(change, fault, tmp_path, capsys):
    path = tmp_path / "a.csv"
    damage(path, 3, change)
    assert list(store.read(path)["launch"]) == ["graph", "other"]
    assert capsys.readouterr().err == f"warning: {path} line 3: {fault}: this row is left out\n"


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


def test_many_rows_that_are_left_out_are_said_in_a_few_lines(tmp_path, capsys):
    path = tmp_path / "a.csv"
    Store(path, Layer.columns).append([{**ROW, "case_hash": f"c{number}"} for number in range(30)])
    path.write_text(path.read_text(encoding="utf-8").replace("3.5", "-3.5"), encoding="utf-8")
    assert store.read(path).empty
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == store.MOST_SAID + 1
    assert lines[-1] == f"warning: {path}: 20 more rows are left out, up to line 31"


@pytest.mark.parametrize("name", ["throughput.csv", "throughput.json"])
def test_a_link_that_leads_nowhere_is_told_before_anything_is_measured(name, tmp_path):
    link = tmp_path / "made-up-gpu" / name
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(store.Damaged, match=rf"{name}: a link to \S+gone, which is not there: remove the link"):
        Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    assert link.is_symlink()


def test_another_timing_is_another_measurement(tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    run.put(CASE, [measured("graph") | {"method_revision": "latency2+default"}])
    assert [entry["method_revision"] for entry in run.done("x", ["graph"])] == ["latency2+default"]
    run.put(CASE, [measured("graph") | {"method_revision": "latency2+thorough"}])
    assert [entry["method_revision"] for entry in run.done("x", ["graph"])] == ["latency2+thorough"]


def test_failures_alone_are_done_again_by_retry(tmp_path):
    run = Run.open(tmp_path, "throughput", Layer(), ENVIRONMENT)
    statuses = ("ok", "unsupported", "unavailable", "oom", "incorrect", "timeout", "error")
    for tokens, status in enumerate(statuses, 1):
        row = measured("graph") if status == "ok" else {
            **measured("graph"), "status": status, "reason": "it is so", "p50_us": None,
        }  # fmt: skip
        run.put(Case("tiny", 8, 2, 128, 256, tokens), [row])
    assert len(run.done("x", ["graph"])) == len(statuses)
    kept = {entry["case_hash"] for entry in run.done("x", ["graph"], retry=True)}
    assert kept == {Case("tiny", 8, 2, 128, 256, tokens).case_hash for tokens in (1, 2)}
