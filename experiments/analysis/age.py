"""Which rows were measured by an older method, or of an older revision of a system, than the checkout's code."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from tritonmoe_bench import ROOT

from .. import checkout
from ..measure.revisions import LOCK, lock_hash, locked, scope

DEPENDS_ON = ("kernels", "baselines", "experiments/measure", "experiments/workload")
"""The folders on which a measured number may depend."""

Versions = dict[str, set[int]]
"""Of the rows of a study, by name: the versions that they state."""


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
    stated: dict[str, Versions] = {}
    for study, frame in frames.items():
        parts = {part for method in frame["method_revision"].dropna().unique() for part in str(method).split("+")}
        stated[study] = {}
        for name, version in (found.groups() for part in parts if (found := re.fullmatch(r"(.*?)(\d+)", part))):
            stated[study].setdefault(name, set()).add(int(version))
    return _older(stated, locked()["method"])


def older_revisions(frames: Mapping[str, pd.DataFrame]) -> list[Older]:
    """Systems of which rows state a lower revision than the lock; those that it does not list are left out."""
    now = locked()["revisions"]
    entries: dict[str, list[tuple[int | None, str]]] = {}
    for name in now:
        system, most = scope(name)
        entries.setdefault(system, []).append((most, name))
    for held in entries.values():  # the fewest tokens first, and last the entry for all others
        held.sort(key=lambda entry: (entry[0] is None, entry[0] or 0))
    stated: dict[str, Versions] = {}
    for study, frame in frames.items():
        rows = frame[["implementation", "tokens", "revision"]].dropna().drop_duplicates()
        stated[study] = {}
        for system, tokens, revision in rows.itertuples(index=False):
            name = next((name for most, name in entries.get(system, ()) if most is None or tokens <= most), None)
            if name is not None:
                stated[study].setdefault(name, set()).add(int(revision))
    return _older(stated, now)


def _older(stated: Mapping[str, Versions], now: Mapping[str, int]) -> list[Older]:
    """By name; names with the same versions in the same studies are one entry. stated: by study."""
    studies: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for study, versions in stated.items():
        for name in now:
            behind = tuple(sorted(version for version in versions.get(name, ()) if version < now[name]))
            if behind:
                studies.setdefault((name, behind), []).append(study)
    names: dict[tuple[tuple[int, ...], int, tuple[str, ...]], list[str]] = {}
    for (name, behind), where in studies.items():
        names.setdefault((behind, now[name], tuple(where)), []).append(name)
    return [Older(tuple(alike), was, version, where) for (was, version, where), alike in names.items()]


@functools.cache
def commits_since(commit: str) -> int | None:
    """How many commits of this checkout changed kernels, adapters or measurement after one; None where git does not
    know it."""
    command = ["git", "rev-list", "--count", f"{commit}..HEAD", "--", *DEPENDS_ON]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(done.stdout) if done.returncode == 0 else None


@functools.cache
def lock_of(commit: str) -> str:
    """`lock_hash` of the lock as of a commit; empty where git knows neither."""
    text = checkout.git(ROOT, "show", f"{commit}:{LOCK.relative_to(ROOT).as_posix()}")
    try:
        return lock_hash(json.loads(text or ""))
    except (ValueError, KeyError):
        return ""


def unchanged_since(frames: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """By commit, the studies with rows of it, of those commits whose lock of kernels and measurement is the code's."""
    now, found = lock_hash(), dict[str, list[str]]()
    for study, frame in frames.items():
        commits: Iterable[object] = frame["git_commit"].dropna() if "git_commit" in frame else ()
        for commit in sorted({str(commit) for commit in commits}):
            if lock_of(commit) == now:
                found.setdefault(commit, []).append(study)
    return found


def commits_of(files: Iterable[str], frames: Mapping[str, pd.DataFrame]) -> tuple[int, int] | None:
    """(least, most) of `commits_since` over the rows of the studies in files named <study>.csv; None if not known."""
    studies = [frames[name] for name in (file.removesuffix(".csv") for file in files) if name in frames]
    commits = {str(commit) for frame in studies for commit in frame["git_commit"].dropna().unique()}
    ages = [age for age in map(commits_since, sorted(commits)) if age is not None]
    return (min(ages), max(ages)) if ages else None
