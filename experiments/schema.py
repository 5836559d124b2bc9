"""The one place that knows the columns of every CSV. Units stand in the names. Imports neither torch nor triton.

A row that is not `ok` carries no timing, and a timed row carries a finite positive one: `validate` refuses the rest.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

STATUSES = ("ok", "unavailable", "unsupported", "oom", "incorrect", "timeout", "error")
LAUNCHES = ("graph", "eager")
TIMING_METHODS = ("chain", "flush", "none")
TRAFFIC_METHODS = ("model", "interpreter", "counters")

CASE_COLUMNS = (
    "model", "num_experts", "top_k", "hidden_dim", "ffn_dim", "tokens", "skew", "seed", "dtype", "gating", "case_hash",
)  # fmt: skip
IMPLEMENTATION_COLUMNS = ("implementation", "implementation_version", "code_hash", "config")
TIMING_COLUMNS = ("p50_us", "p20_us", "p80_us", "samples", "tokens_per_s")
ENVIRONMENT_COLUMNS = (
    "device", "device_uuid", "driver", "torch", "triton", "git_commit", "git_dirty", "sm_clock_mhz", "timestamp_utc",
)  # fmt: skip

ROW_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS,
    "launch", "timing_method", "status", "reason", *TIMING_COLUMNS,
    "active_experts", "max_expert_load", "min_bytes", "flops", "stream_us", "limit_us",
    "rel_error", "torch_rel_error", "workspace_bytes", "kernel_launches", "host_syncs", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/<study>.csv: one row per case, implementation and launch mode."""

STAGE_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS, "stage",
    "launch", "timing_method", "status", "reason", "p50_us", "p20_us", "p80_us", "samples",
    "min_bytes", "flops", "active_experts", "max_expert_load", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/stages.csv: one row per case, implementation, launch mode and stage of its pipeline."""

TRAFFIC_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS, "stage", "tensor", "method", "status", "reason",
    "read_bytes", "write_bytes", "unique_read_bytes", "unique_write_bytes", "l2_bytes",
    "min_bytes", "flops", "active_experts", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/traffic.csv: bytes per stage and tensor, stage `total` for the whole forward. Of the methods model
and interpreter, read and write count every access that a kernel issues, and the unique columns each address once. Of
the method counters, read and write are what passes between DRAM and L2, and l2_bytes what passes the L2, both ways. A
method that cannot tell leaves a column empty."""

ENERGY_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS,
    "launch", "timing_method", "status", "reason", "p50_us", "p20_us", "p80_us", "samples",
    "power_w", "energy_mj", "settled_clock_mhz", "power_limit_w",
    "active_experts", "max_expert_load", "min_bytes", "flops", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/energy.csv: one row per case, implementation and launch mode. power_w: mean power while forwards ran
back to back; energy_mj: of one forward; settled_clock_mhz: SM clock under that load; power_limit_w: the card's."""

TUNE_COLUMNS = (
    "run_id", "study", *CASE_COLUMNS, *IMPLEMENTATION_COLUMNS, "stage", "round",
    "launch", "timing_method", "status", "reason", "p50_us", "p20_us", "p80_us", "samples", "routings", "gain",
    "rel_error", "torch_rel_error", *ENVIRONMENT_COLUMNS,
)  # fmt: skip
"""results/<device>/tune.csv: one row per case, tile of a stage, and round. stage `forward`: whole tiles, timed in
turns, a round each; stage `choice`: what went into the tuned table, with its gain, the time of the heuristic over that
of the fastest rival. routings: how many routings of the case, with consecutive seeds, one sample runs through."""

PORTABILITY_STATUSES = ("ok", "does_not_compile", "too_much_shared", "spills", "misses_matrix_unit")
PORTABILITY_COLUMNS = (
    "kernel", "config", "dtype", "target", "status", "matrix_instruction", "pipelined", "registers", "spills",
    "shared_bytes", "reason", "implementations", "case",
)  # fmt: skip
"""results/portability.csv: one row per kernel, configuration and target. registers: a thread's; spills: bytes a thread
of local memory; shared_bytes: a program's; pipelined: how loads run ahead; implementations: those that launch it,
joined by "+"; case: one at which they do."""

TEXT_COLUMNS = (
    "case_hash", "code_hash", "run_id", "implementation_version", "reason", "config", "git_commit", "torch", "triton",
    "driver",
)  # fmt: skip
"""Columns that a reader must not take for numbers."""

ROW_KEY = ("case_hash", "implementation", "launch")
STAGE_KEY = (*ROW_KEY, "stage")
TUNE_KEY = ("case_hash", "implementation", "stage", "config", "round")
TRAFFIC_KEY = ("case_hash", "implementation", "stage", "tensor", "method")

COLUMNS = {
    "layer": ROW_COLUMNS, "stages": STAGE_COLUMNS, "traffic": TRAFFIC_COLUMNS, "tune": TUNE_COLUMNS,
    "energy": ENERGY_COLUMNS,
}  # fmt: skip
KNOWN = {name for columns in COLUMNS.values() for name in columns}
NEEDED = ("run_id", "case_hash", "implementation", "status", "timestamp_utc")
"""Columns that a CSV of any kind and age has."""
WORDS = {
    *TEXT_COLUMNS, "study", "model", "dtype", "gating", "implementation", "stage", "tensor", "method", "launch",
    "timing_method", "status", "device", "device_uuid", "git_dirty", "timestamp_utc",
}  # fmt: skip
WHOLE_NUMBERS = {"num_experts", "top_k", "hidden_dim", "ffn_dim", "tokens", "seed"}
"""What is in neither is a number of any kind."""
KEYS = {"layer": ROW_KEY, "stages": STAGE_KEY, "traffic": TRAFFIC_KEY, "tune": TUNE_KEY, "energy": ROW_KEY}
MODE_COLUMN = {"layer": "launch", "stages": "launch", "traffic": "method", "energy": "launch"}
"""By kind of study: its columns, its key, and the column that holds the mode of measuring."""


class Damaged(Exception):
    """A file of results that cannot be read at all; the message names it and says what to do."""

    one_line = True


def damaged(path: Path, fault: str) -> Damaged:
    return Damaged(f"{path}: {fault}: restore it from git, or move it away and make it anew")


def failed(kind: str, mode: str, status: str, reason: str) -> dict[str, Any]:
    """What tells, in a row of that kind, that a point gave no result, and why; the reason in one line."""
    row = {MODE_COLUMN[kind]: mode, "status": status, "reason": " ".join(reason.split())[:300]}
    if kind == "traffic":
        return row | {"stage": "total", "tensor": "all"}
    return row | {"timing_method": "none"} | ({"stage": "all"} if kind == "stages" else {})


def validate(row: Mapping[str, Any], columns: tuple[str, ...] = ROW_COLUMNS) -> None:
    """Raises ValueError for a row that no CSV may hold."""
    unknown = set(row) - set(columns)
    missing = {"run_id", "case_hash", "implementation", "status"} - set(row)
    if unknown or missing:
        raise ValueError(f"row has unknown columns {sorted(unknown)} and lacks {sorted(missing)}")
    if row["status"] not in STATUSES:
        raise ValueError(f"status={row['status']!r}: allowed are {', '.join(STATUSES)}")
    if row["status"] != "ok":
        timed = [name for name in TIMING_COLUMNS if row.get(name) not in (None, "")]
        if timed:
            raise ValueError(f"a row with status {row['status']} carries timings: {timed}")
        if not row.get("reason"):
            raise ValueError(f"a row with status {row['status']} needs a reason")
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value}: leave out what is not known")
    if "p50_us" in row and row["p50_us"] not in (None, "") and not row["p50_us"] > 0:
        raise ValueError(f"p50_us={row['p50_us']}: a latency is positive")


def append(path: Path, row: Mapping[str, Any], columns: tuple[str, ...] = ROW_COLUMNS) -> None:
    """Appends one validated row, as one line, and has it on disk before it returns, so that a kill loses nothing
    finished.

    A file of an older schema first gets the columns that it lacks, and one that a kill has torn loses the torn line.
    """
    validate(row, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _to_mend(path, columns):
        rewrite(path, rows(path), columns)
    with writing(path), open(path, "a", newline="") as handle:
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
    frame = pd.read_csv(text, low_memory=False, dtype=dict.fromkeys(TEXT_COLUMNS, "string"))
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


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Puts these rows in the place of a CSV, which a kill leaves as it was or as it is to be."""
    partial = path.with_suffix(".partial")
    with writing(partial), open(partial, "w", newline="") as handle:
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
