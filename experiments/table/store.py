"""The rows of one CSV on disk: written whole or not at all, and checked when they are read as when they are written."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from .columns import FORWARD_KEY, NEEDED, RETIRED, Column, cell, declared, faults, names, validate
from .locks import take

Row = Mapping[str, Any]
MOST_SAID = 10
"""So many of the rows that are left out of a file are named one by one."""


class Damaged(Exception):
    """A file of results that cannot be read at all; the message names it and says what to do."""

    one_line = True


def damaged(path: Path, fault: str) -> Damaged:
    return Damaged(f"{path}: {fault}: restore it from git, or move it away and make it anew")


@dataclass
class Store:
    """One CSV with its columns and key, shared with other processes: each call is atomic for them, and for a kill.

    key: the columns that, with `run_id`, tell one row from another.
    """

    path: Path
    columns: Sequence[Column]
    key: Sequence[str] = FORWARD_KEY
    _held: IO[str] | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps all other processes from the CSV, for several calls that belong together."""
        if self._held is not None:
            yield
            return
        self._held = take(lock(self.path, "rows"))
        assert self._held is not None
        try:
            yield
        finally:
            self._held.close()
            self._held = None

    def append(self, rows: Sequence[Row]) -> None:
        """Appends validated rows in one write, which is on disk when this returns.

        A file of an older schema first gets the columns that it lacks, and one that a kill has torn loses the torn
        line. Raises ValueError for a row that no CSV may hold, Damaged for a file that is none of a study.
        """
        validate(rows, self.columns)
        text = io.StringIO()
        listed = names(self.columns)
        csv.writer(text, lineterminator="\n").writerows([cell(row.get(name)) for name in listed] for row in rows)
        with self.alone():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self._to_mend():
                self._rewrite(raw_rows(self.path))
            with writing(self.path), open(self.path, "a", newline="", encoding="utf-8") as handle:
                head = ",".join(listed) + "\n" if handle.tell() == 0 else ""
                handle.write(head + text.getvalue())
                handle.flush()
                os.fsync(handle.fileno())

    def replace(self, rows: Sequence[Row], of: Sequence[str]) -> None:
        """`append`, without the rows of the same run that agree with a new one in the columns `of`."""
        new = {tuple(cell(row.get(name)) for name in ("run_id", *of)) for row in rows}
        validate(rows, self.columns)
        with self.alone():
            held = raw_rows(self.path)
            kept = [row for row in held if tuple(row.get(name, "") for name in ("run_id", *of)) not in new]
            if len(kept) < len(held):
                listed = names(self.columns)
                self._rewrite([*kept, *({name: cell(row.get(name)) for name in listed} for row in rows)])
            else:
                self.append(rows)

    def read(self) -> pd.DataFrame:
        """As `read` below."""
        with self.alone():
            return read(self.path, self.key)

    def compact(self, known: Mapping[tuple[str, ...], Mapping[str, Any]] | None = None) -> None:
        """Leaves one row a key, the last of each, and no line that cannot be read.

        known: by run_id and key, as text, cells that follow from other rows.
        """
        with self.alone():
            if not self.path.exists():
                return
            kept = {tuple(row[name] for name in ("run_id", *self.key)): row for row in raw_rows(self.path)}
            for key, cells in (known or {}).items():
                if key in kept:
                    kept[key] |= {name: cell(value) for name, value in cells.items()}
            self._rewrite(kept.values())

    def _rewrite(self, rows: Iterable[Row]) -> None:
        write_rows(self.path, rows, names(self.columns))

    def _to_mend(self) -> bool:
        """Whether the CSV, which is not empty, has another header or a last line without its end."""
        held = header(self.path)
        if not held:
            return False
        with open(self.path, "rb") as handle:
            handle.seek(-1, os.SEEK_END)
            return held != list(names(self.columns)) or handle.read(1) != b"\n"


def lock(path: Path, name: str) -> Path:
    """Lock file of a CSV: `rows` while it or its record is read or written, `writers` held shared by all who write."""
    return path.parent / ".locks" / f"{path.stem}-{name}.lock"


def read(path: Path, key: Sequence[str] = FORWARD_KEY) -> pd.DataFrame:
    """The rows of one CSV, one per key: of rows with the same run and key the last one stands. No key keeps them all.

    A row that could not have been written is left out with a warning, a last line torn by a kill without a word. Empty
    frame with no columns if there is no file. Raises Damaged if the header is none of a study, or lacks the key.
    """
    if not path.exists():
        return pd.DataFrame()
    return _frame(path, path.read_bytes(), tuple(key), tuple(declared().values())).copy()


@functools.lru_cache(maxsize=128)
def _frame(path: Path, content: bytes, key: tuple[str, ...], known: tuple[Column, ...]) -> pd.DataFrame:
    """As `read`, of what the file holds: a report and its figures read the same rows again and again."""
    columns, lines = _sound(path, content, key)
    if not columns:
        return pd.DataFrame()
    types = {name: str for name in columns if name in RETIRED or declared()[name].type is str}
    frame = pd.read_csv(
        io.StringIO("\n".join([",".join(columns), *lines])), low_memory=False, keep_default_na=False, na_values=[""],
        dtype=types,
    )  # fmt: skip
    frame = frame.drop(columns=[name for name in RETIRED if name in frame])
    for column in (column for column in known if column.unstated):
        name = column.name
        frame[name] = frame[name].fillna(column.unstated) if name in frame else column.unstated
    return frame.drop_duplicates(["run_id", *key], keep="last").reset_index(drop=True) if key else frame


def raw_rows(path: Path) -> list[dict[str, str]]:
    """Every row of one CSV that `read` takes, as it is written."""
    columns, lines = _sound(path, path.read_bytes()) if path.exists() else ([], [])
    return [dict(zip(columns, cells)) for cells in csv.reader(lines)]


def header(path: Path) -> list[str]:
    """The columns of one CSV; none if the file is not there or empty. Raises Damaged if the first line has others."""
    if not path.exists() or not path.stat().st_size:
        return []
    with open(path, "rb") as handle:
        return _columns(path, handle.readline())


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


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Puts these rows in the place of a CSV, which a kill leaves as it was or as it is to be."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Puts this text, as UTF-8, in the place of a file, which a kill or a full disk leaves as it was."""
    partial = path.with_name(f"{path.name}.partial")
    with writing(partial), open(partial, "w", newline="", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in an OSError that does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _columns(path: Path, first: bytes, key: Iterable[str] = ()) -> list[str]:
    columns = _cells(first.decode("utf-8-sig", errors="replace").rstrip("\r\n")) or []
    lacking = [name for name in dict.fromkeys([*NEEDED, *key]) if name not in columns]
    unknown = [name for name in columns if name not in declared() and name not in RETIRED]
    if lacking:
        raise damaged(path, f"line 1 is not the header of a study: it lacks {', '.join(lacking)}")
    if unknown:
        raise damaged(path, f"line 1, the header, has columns that no study has: {', '.join(unknown)}")
    return columns


def _sound(path: Path, content: bytes, key: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """(columns, the lines that hold a row that may stand in a CSV) of what one CSV holds; none if it is empty."""
    first, *others = content.split(b"\n")
    if not first and not others:
        _warn(f"{path} is empty: restore it from git, or measure again")
        return [], []
    columns = _columns(path, first, key)
    torn = others.pop() if others else b""  # what follows the last line's end
    lines = [line.decode(errors="replace").rstrip("\r") for line in others]
    parts = {number: _cells(line) or [] for number, line in enumerate(lines, 2) if line.strip()}
    last = torn.decode(errors="replace").rstrip("\r")
    if len(_cells(last) or []) == len(columns):
        parts[len(lines) + 2] = _cells(last) or []
        lines.append(last)
    told = {
        number: f"it has {len(cells)} of {len(columns)} fields"
        for number, cells in parts.items()
        if len(cells) != len(columns)
    } | {number: "it is not CSV in UTF-8" for number in parts if _cells(lines[number - 2]) is None}
    table = pd.DataFrame(
        [cells for number, cells in parts.items() if number not in told],
        index=[number for number in parts if number not in told], columns=columns, dtype=object,
    ).drop(columns=list(RETIRED), errors="ignore")  # fmt: skip
    if len(table):
        found = faults(table, declared())
        told |= {int(str(number)): fault for number, fault in found[found != ""].items()}
    said = sorted(told.keys() - {len(others) + 2})  # that is the torn one
    for number in said[:MOST_SAID]:
        _warn(f"{path} line {number}: {told[number]}: this row is left out")
    if len(said) > MOST_SAID:
        _warn(f"{path}: {len(said) - MOST_SAID} more rows are left out, up to line {said[-1]}")
    return columns, [lines[number - 2] for number in parts if number not in told]


def _cells(line: str) -> list[str] | None:
    """The cells of a line; none where it is not CSV in UTF-8."""
    try:
        return None if "\ufffd" in line else next(csv.reader([line], strict=True), [])
    except csv.Error:
        return None


@functools.cache
def _warn(text: str) -> None:
    """Says it once, however often the file is read."""
    print(f"warning: {text}", file=sys.stderr)
