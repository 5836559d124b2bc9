"""How to decide a claim again: the commands that measure its files again, and how long their rows took.

Without FORCE=true a sweep leaves out what its run already holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

STUDY_OF = {"traffic": "counters"}
"""The study whose command makes a file of another name."""
PAUSE_S = 300
"""A longer time between two rows is a break of the run, not the time that a row took."""
WITHOUT_GPU = {"tests": ("make test", 23), "portability": ("make portability", 31)}
"""Command and minutes on two CPU cores, as the Makefile says."""


def command(files: Iterable[str], frames: Mapping[str, pd.DataFrame]) -> list[tuple[str, float]]:
    """(command, minutes) for each file of results/ that decides a claim; minutes as the committed rows took."""
    commands: dict[str, float] = {}
    for file in files:
        name = file.rpartition(".")[0]
        kind = "tests" if name.startswith("tests-") else name
        if kind in WITHOUT_GPU:
            text, minutes = WITHOUT_GPU[kind]
            commands[text] = minutes
        elif name in frames:
            commands[f"make sweep STUDY={STUDY_OF.get(name, name)} FORCE=true"] = minutes_of(frames[name])
    return list(commands.items())


def minutes_of(rows: pd.DataFrame) -> float:
    """Minutes from the first row of a run to the last, without its breaks."""
    stamps = pd.to_datetime(rows["timestamp_utc"], format="ISO8601").sort_values()
    steps = stamps.diff().dt.total_seconds()
    return float(steps[steps <= PAUSE_S].sum()) / 60
