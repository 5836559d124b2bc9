"""What a damaged CSV or JSON says, that a kill tears no finished row, and which rows are left out."""

import errno
import os

import pandas as pd
import pytest
from store_rows import ROW

from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.table.store import Store


def test_a_line_torn_by_a_kill_is_left_out_and_the_next_row_is_whole(tmp_path):
    path = tmp_path / "a.csv"
    Store(path, Layer.columns).append([ROW])
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("r1,adhoc,tiny,8,2")
    Store(path, Layer.columns).append([{**ROW, "launch": "eager", "p50_us": 9.0}])
    frame = store.read(path)
    assert dict(zip(frame["launch"], frame["p50_us"])) == {"graph": 3.5, "eager": 9.0}


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


def test_many_rows_that_are_left_out_are_said_in_a_few_lines(tmp_path, capsys):
    path = tmp_path / "a.csv"
    Store(path, Layer.columns).append([{**ROW, "case_hash": f"c{number}"} for number in range(30)])
    path.write_text(path.read_text(encoding="utf-8").replace("3.5", "-3.5"), encoding="utf-8")
    assert store.read(path).empty
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == store.MOST_SAID + 1
    assert lines[-1] == f"warning: {path}: 20 more rows are left out, up to line 31"
