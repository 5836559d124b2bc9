"""How to decide a claim again: the commands that measure its files again, and how long their rows took.

Without FORCE=true a sweep leaves out what its run already holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from tritonmoe_bench import ROOT

from ..table.outcomes import AUTHORS, HERE

STUDY_OF = {"traffic": "counters"}
"""The study whose command makes a file of another name."""
PAUSE_S = 300
"""A longer time between two rows is a break of the run, not the time that a row took."""
ON_CPU = " on two CPU cores"
TARGETS = {
    HERE.tests: ("test", "", ON_CPU), HERE.portability: ("portability", "", ON_CPU),
    AUTHORS.tests: ("papertests", "", " after `make checkouts`"),
    AUTHORS.portability: ("portability", " CODE=authors", f"{ON_CPU}, after `make checkouts`"),
}  # fmt: skip
"""By a file which no study makes, or the start of its name: the target of make that does, what stands behind it, and on
what it takes so long."""


def command(files: Iterable[str], frames: Mapping[str, pd.DataFrame]) -> list[tuple[str, float, str]]:
    """(command, minutes, where) for each file of results/ that decides a claim; minutes as the committed rows took, or
    as the Makefile's help says; where: what to say behind the minutes, on the GPU nothing."""
    commands: dict[str, tuple[float, str]] = {}
    for file in files:
        name = file.rpartition(".")[0]
        kind = next((start for start in (HERE.tests, AUTHORS.tests) if name.startswith(f"{start}-")), file)
        if kind in TARGETS:
            target, keys, where = TARGETS[kind]
            commands[f"make {target}{keys}"] = minutes_of_help(target, keys), where
        elif name in frames:
            commands[f"make sweep STUDY={STUDY_OF.get(name, name)} FORCE=true"] = minutes_of(frames[name]), ""
    return [(command, minutes, where) for command, (minutes, where) in commands.items()]


def minutes_of_help(target: str, keys: str = "") -> int:
    """What the help of the Makefile says of a target, with those keys."""
    help_text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (minutes,) = re.findall(rf"^{target}:.*?{keys.strip()}[^(]*\((\d+) minutes?\b", help_text, re.MULTILINE)
    return int(minutes)


def minutes_of(rows: pd.DataFrame) -> float:
    """Minutes from the first row of a run to the last, without its breaks."""
    stamps = pd.to_datetime(rows["timestamp_utc"], format="ISO8601").sort_values()
    steps = stamps.diff().dt.total_seconds()
    return float(steps[steps <= PAUSE_S].sum()) / 60
