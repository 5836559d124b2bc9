"""Whether the rows of Triton's interpreter here say what the committed ones say: run after `make reproduce`.

As a program, compares results/interpreter of this checkout with that of its commit. Counted bytes and the verdict on
each output are exact: the same code gives the same ones on any machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from tritonmoe_bench import ROOT

from .. import checkout
from ..measure.measurement import kinds
from ..table import current, store
from ..table.provenance import INTERPRETER

COMPARED = {
    "smoke": ("status",),
    "traffic": ("status", "read_bytes", "write_bytes", "unique_read_bytes", "unique_write_bytes"),
}
"""By study, the columns that have to agree."""
WHAT = {"smoke": "status", "traffic": "status and bytes"}
KEYS = {"smoke": kinds()["layer"].key, "traffic": kinds()["traffic"].key}
NAMED = ("model", "tokens", "dtype")
SHOWN = 3
"""How many disagreeing rows are shown."""


def compare(study: str, here: pd.DataFrame, there: pd.DataFrame) -> list[str]:
    """A line that says how many rows agree, and a line for each of the first that do not. there: as committed."""
    key = list(KEYS[study])
    both = here.merge(there, on=key, how="outer", suffixes=("", " committed"), indicator=True)
    matched = both["_merge"] == "both"
    same = matched.copy()
    for column in COMPARED[study]:
        mine, theirs = both[column], both[f"{column} committed"]
        same &= (mine == theirs) | (mine.isna() & theirs.isna())
    committed, new = both["_merge"] != "left_only", int((both["_merge"] == "left_only").sum())
    lines = [f"{study}: {int(same.sum())} of {int(committed.sum())} committed rows have the same {WHAT[study]} here"]
    lines[0] += f", and {new} rows are new" * bool(new)
    for _, row in both[committed & ~same].head(SHOWN).iterrows():
        pairs = {name: (_shown(row[name]), _shown(row[f"{name} committed"])) for name in COMPARED[study]}
        differing = [f"{name} {mine}, committed {theirs}" for name, (mine, theirs) in pairs.items() if mine != theirs]
        if row["_merge"] == "right_only":
            differing = ["there is no such row here"]
        elif row["revision"] != row["revision committed"]:
            differing.append(f"revision {_shown(row['revision'])}, committed {_shown(row['revision committed'])}")
        lines.append(f"  {_point(row, key)}: {'; '.join(differing)}")
    return lines


def _point(row: pd.Series, key: list[str]) -> str:
    case = [str(row[name] if pd.notna(row[name]) else row[f"{name} committed"]) for name in NAMED]
    return " ".join([*case, *(str(row[name]) for name in key if name != "case_hash")])


def _shown(value: object) -> str:
    """A value in words: a column with a gap holds its bytes as floats."""
    return "nothing" if pd.isna(value) else str(int(value) if isinstance(value, float) else value)  # type: ignore[call-overload]


def rows(study: str, text: bytes | None = None) -> pd.DataFrame:
    """The last run of a study of the interpreter, of this checkout on any software, or that of the text of a CSV."""
    path = ROOT / "results" / INTERPRETER / f"{study}.csv"
    if text is None:
        runs = [store.read(run, KEYS[study]) for run in current.runs(path)]
        return max(runs, key=lambda frame: str(frame["timestamp_utc"].max()))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(text)
        return store.read(copy, KEYS[study])


def main() -> None:
    """Prints the comparison, or that there is no commit to compare with."""
    print("Counted and checked here, against what is committed:")
    for study in COMPARED:
        text = checkout.git(ROOT, "show", f"HEAD:results/{INTERPRETER}/{study}.csv")
        if text is None:
            print(f"  {study}: this copy has no commit of its own to compare with")
            continue
        for line in compare(study, rows(study), rows(study, f"{text}\n".encode())):
            print(f"  {line}")


if __name__ == "__main__":
    main()
