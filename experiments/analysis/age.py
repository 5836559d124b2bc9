"""Which rows were measured by an older method, or of an older revision of a system, than the checkout's code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from ..measure.revisions import locked


@dataclass(frozen=True)
class Older:
    """What the code has left behind.

    names: of systems, or of parts of the method; was: their revisions or versions in the rows; now: the code's;
    studies: those with such rows.
    """

    names: tuple[str, ...]
    was: tuple[int, ...]
    now: int
    studies: tuple[str, ...]


def older_methods(frames: Mapping[str, pd.DataFrame]) -> list[Older]:
    """Parts of the method (workload, latency, ...) of which rows state a lower version than the lock."""

    def stated(frame: pd.DataFrame, name: str) -> pd.Series:
        """The version that each row states, as the 2 in "workload1+latency2+default"."""
        return frame["method_revision"].astype("string").str.extract(rf"(?:^|\+){re.escape(name)}(\d+)(?:\+|$)")[0]

    return _older(frames, locked()["method"], stated)


def older_revisions(frames: Mapping[str, pd.DataFrame]) -> list[Older]:
    """Systems of which rows state a lower revision than the lock; those that it does not list are left out."""
    return _older(
        frames, locked()["revisions"], lambda frame, name: frame.loc[frame["implementation"] == name, "revision"]
    )


def _older(
    frames: Mapping[str, pd.DataFrame], now: Mapping[str, int], stated: Callable[[pd.DataFrame, str], pd.Series]
) -> list[Older]:
    """By name; names with the same versions in the same studies are one entry."""
    studies: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for study, frame in frames.items():
        for name in now:
            versions = pd.to_numeric(stated(frame, name).dropna())
            behind = tuple(sorted({int(version) for version in versions if version < now[name]}))
            if behind:
                studies.setdefault((name, behind), []).append(study)
    names: dict[tuple[tuple[int, ...], int, tuple[str, ...]], list[str]] = {}
    for (name, behind), where in studies.items():
        names.setdefault((behind, now[name], tuple(where)), []).append(name)
    return [Older(tuple(alike), was, version, where) for (was, version, where), alike in names.items()]
