"""The one place that knows the columns of every CSV. Units stand in the names. Imports neither torch nor triton.

A row that is not `ok` carries no timing, and a timed row carries a finite positive one: `validate` refuses the rest.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .columns import (
    KNOWN,
    NAMES,
    NEEDED,
    ROW_COLUMNS,
    ROW_KEY,
    STATUSES,
    TEXT_COLUMNS,
    UNSTATED,
    WHOLE_NUMBERS,
    WORDS,
    validate,
)


class Damaged(Exception):
    """A file of results that cannot be read at all; the message names it and says what to do."""

    one_line = True


def damaged(path: Path, fault: str) -> Damaged:
    return Damaged(f"{path}: {fault}: restore it from git, or move it away and make it anew")


def append(path: Path, row: Mapping[str, Any], columns: tuple[str, ...] = ROW_COLUMNS) -> None:
    """Appends one validated row, as one line, and has it on disk before it returns, so that a kill loses nothing
    finished.

    A file of an older schema first gets the columns that it lacks, and one that a kill has torn loses the torn line.
    """
    validate(row, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _to_mend(path, columns):
        rewrite(path, rows(path), columns)
    with writing(path), open(path, "a", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        if handle.tell() == 0:
            writer.writerow(columns)
        writer.writerow(["" if row.get(c) is None else " ".join(str(row[c]).splitlines()) for c in columns])
        handle.flush()
        os.fsync(handle.fileno())


def read(path: Path, key: tuple[str, ...] = ROW_KEY) -> pd.DataFrame:
    """The rows of one CSV, one a key: of rows with the same run and key the last one stands.

    What cannot be read is left out, as `lines` says. Empty frame with no columns if there is no file.
    """
    text = io.StringIO("\n".join(lines(path, key)))
    if not text.getvalue():
        return pd.DataFrame()
    frame = pd.read_csv(text, low_memory=False, keep_default_na=False, na_values=[""],
                        dtype=dict.fromkeys(NAMES, str) | dict.fromkeys(TEXT_COLUMNS, "string"))  # fmt: skip
    for name, meaning in UNSTATED.items():
        if "case_hash" in frame:
            frame[name] = frame[name].fillna(meaning) if name in frame else meaning
    return frame.drop_duplicates(["run_id", *key], keep="last").reset_index(drop=True)


def rows(path: Path) -> list[dict[str, str]]:
    """Every row of one CSV that can be read, as it is written."""
    return list(csv.DictReader(lines(path)))


def lines(path: Path, key: Iterable[str] = ()) -> list[str]:
    """The lines of one CSV that can be read, a row each, behind the header; none if the file is not there or empty.

    A last line torn by a kill is left out without a word, every other that cannot be read with a warning: a sweep runs
    its point again. Raises Damaged if the header is none, or lacks a column of the key.
    """
    if not path.exists():
        return []
    first, *others = path.read_bytes().split(b"\n")
    if not first and not others:
        _warn(f"{path} is empty: restore it from git, or measure again")
        return []
    columns = _columns(path, first, key)
    kept = [first]
    for number, line in enumerate(others, 2):
        fault = _fault(columns, line) if line.strip() else None
        if fault is None:
            kept.append(line)
        elif number <= len(others):  # the last one has no end: it is torn
            _warn(f"{path} line {number}: {fault}: this row is left out")
    return [line.decode("utf-8-sig").rstrip("\r") for line in kept]


def header(path: Path) -> list[str]:
    """The columns of one CSV; none if the file is not there or empty. Raises Damaged if the first line has others."""
    if not path.exists() or not path.stat().st_size:
        return []
    with open(path, "rb") as handle:
        return _columns(path, handle.readline())


def compact(path: Path, key: tuple[str, ...]) -> None:
    """Drops the rows that a later one of the same run and key has replaced, and lines that cannot be read."""
    kept = {tuple(row[name] for name in ("run_id", *key)): row for row in rows(path)}
    rewrite(path, kept.values(), header(path))


def write_whole(path: Path, text: str) -> None:
    """Puts this text, as UTF-8, in the place of a file, which a kill or a full disk leaves as it was."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Puts these rows in the place of a CSV, which a kill leaves as it was or as it is to be."""
    partial = path.with_suffix(".partial")
    with writing(partial), open(partial, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON of results holds. Raises Damaged."""
    try:
        held = json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged(path, f"no JSON ({error})") from None
    if not isinstance(held, dict):
        raise damaged(path, "no JSON object")
    return held


def read_table(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV that is not of a sweep, and has these columns. Raises Damaged."""
    try:
        frame = pd.read_csv(path)
    except ValueError as error:
        raise damaged(path, f"no CSV ({' '.join(str(error).split())})") from None
    lacking = [name for name in columns if name not in frame]
    if lacking:
        raise damaged(path, f"its header lacks {', '.join(lacking)}")
    return frame


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in an OSError that does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _columns(path: Path, first: bytes, key: Iterable[str] = ()) -> list[str]:
    columns = _cells(first) or []
    lacking = [name for name in dict.fromkeys([*NEEDED, *key]) if name not in columns]
    unknown = [name for name in columns if name not in KNOWN]
    if lacking:
        raise damaged(path, f"line 1 is not the header of a study: it lacks {', '.join(lacking)}")
    if unknown:
        raise damaged(path, f"line 1, the header, has columns that no study has: {', '.join(unknown)}")
    return columns


def _cells(line: bytes) -> list[str] | None:
    try:
        return next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], strict=True), [])
    except (csv.Error, UnicodeDecodeError):
        return None


def _fault(columns: list[str], line: bytes) -> str | None:
    """Why a line holds no row."""
    cells = _cells(line)
    if cells is None:
        return "it is not CSV in UTF-8"
    if len(cells) != len(columns):
        return f"it has {len(cells)} of {len(columns)} fields"
    for name, cell in zip(columns, cells):
        if cell and name not in WORDS:
            try:
                (int if name in WHOLE_NUMBERS else float)(cell)
            except ValueError:
                return f"{name}={cell} is no {'whole ' * (name in WHOLE_NUMBERS)}number"
    row = dict(zip(columns, cells))
    if row["status"] not in STATUSES:
        return f"status={row['status']}: allowed are {', '.join(STATUSES)}"
    return None if row["timestamp_utc"] else "it has no timestamp_utc"


@functools.cache
def _warn(text: str) -> None:
    """Says it once, however often the file is read."""
    print(f"warning: {text}", file=sys.stderr)


def _to_mend(path: Path, columns: tuple[str, ...]) -> bool:
    """Whether a CSV that is not empty has another header, or a last line without its end."""
    with open(path, "rb") as handle:
        first = handle.readline()
        if not first:
            return False
        handle.seek(-1, os.SEEK_END)
        return _cells(first) != list(columns) or handle.read(1) != b"\n"
