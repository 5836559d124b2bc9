"""What the rules read: the current run of every study of one device, test outcomes, and comparisons inside a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence
from ..analysis.names import GPU_SCHEDULE, OWN_CODE, OWN_UNFUSED, PAPER, UNFUSED
from ..analysis.own_code import speedups
from ..table.outcomes import HERE, Files

OWN_STUDY = "paper_code"
"""The study of the paper's own code, which stands for other studies where it has more of their points."""
OF_ALL = ("throughput", "skew")
"""Those studies, of all systems."""


@dataclass(frozen=True)
class Outcomes:
    """What tests and compilers said.

    tests: outcomes by where they ran, "paper_grid" of the paper's cases and "ours" of all others; portability: a matrix
    of kernels and targets, empty if there is none; files: the names of the files of both;
    authors: the same of the code of the paper's authors and their own tests of it, which are its "paper_grid".
    """

    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    portability: pd.DataFrame = field(default_factory=pd.DataFrame)
    files: Files = HERE
    authors: Outcomes | None = None


@dataclass(frozen=True)
class Evidence:
    """What the rules are given.

    frames: the current run of each study, by its name, absent if there is no CSV; outcomes: of tests and of compilers;
    own_code: the speed of the paper's own code in a measurement before this harness, by `analysis.own_code.speedups`.
    """

    device: str
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=Outcomes)
    own_code: pd.DataFrame = field(default_factory=lambda: speedups("none"))

    def study(self, name: str) -> pd.DataFrame:
        """The rows of a study; raises NoEvidence if it was not run on this device."""
        if name not in self.frames:
            raise NoEvidence(f"The study {name} has not been run on {self.device}")
        return self.frames[name]

    def of_paper_code(self) -> Evidence:
        """The studies in which the paper's own code ran, its rows under the names of the pipelines that are written
        after it here, whose own rows are left out. For a study of all systems, the study of that code stands at the
        points of the former if it has more of them; so both codes are judged at the same points."""
        own = {name: _as_written_here(frame) for name, frame in self.frames.items()}
        own = {name: frame for name, frame in own.items() if len(_points(frame))}
        if OWN_STUDY in own:
            own |= {name: self._with_most(name, own) for name in OF_ALL}
        return Evidence(self.device, own, self.outcomes.authors or Outcomes())

    def _with_most(self, name: str, own: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        there = own[OWN_STUDY]
        if name in self.frames:
            shared = there[there["case_hash"].isin(_points(self.frames[name]))]
            there = shared if len(_points(shared)) else there
        return own[name] if name in own and len(_points(own[name])) > len(_points(there)) else there


def _points(frame: pd.DataFrame) -> pd.Index:
    """The cases at which the paper's pipeline was timed."""
    if "implementation" not in frame:
        return pd.Index([])
    rows = frame[(frame["implementation"] == PAPER) & (frame["status"] == "ok" if "status" in frame else True)]
    return pd.Index(rows["case_hash"].unique())


def _as_written_here(frame: pd.DataFrame) -> pd.DataFrame:
    if "implementation" not in frame:
        return frame.assign(implementation="")
    names = frame["implementation"].replace({OWN_CODE: PAPER, OWN_UNFUSED: UNFUSED})
    others = ~frame["implementation"].isin([PAPER, UNFUSED, GPU_SCHEDULE])
    failed = names.isin([PAPER, UNFUSED]) & (frame["status"] != "ok") if "status" in frame else False
    return frame.assign(implementation=names)[others & ~failed]


def rows_of(pairs: pd.DataFrame) -> int:
    """How many CSV rows stand behind a table of comparisons: a row of the system serves all others."""
    own = pairs[["case_hash", "implementation", "launch"]].drop_duplicates()
    return len(own) + len(pairs[["case_hash", "other"]].drop_duplicates())
