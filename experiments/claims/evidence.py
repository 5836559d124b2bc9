"""What the rules read: the current run of every study of one device, test outcomes, and comparisons inside a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..analysis.compare import NoEvidence
from ..analysis.own_code import speedups


@dataclass(frozen=True)
class Evidence:
    """What the rules are given.

    frames: the current run of each study, by its name, absent if there is no CSV; tests: outcomes of the test suite
    by where it ran (`tests/outcomes.py` writes them); portability: results/portability.csv, empty if there is none;
    own_code: the speed of the paper's own code, by `analysis.own_code.speedups`."""

    device: str
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    portability: pd.DataFrame = field(default_factory=pd.DataFrame)
    own_code: pd.DataFrame = field(default_factory=lambda: speedups("none"))

    def study(self, name: str) -> pd.DataFrame:
        """The rows of a study; raises NoEvidence if it was not run on this device."""
        if name not in self.frames:
            raise NoEvidence(f"The study {name} has not been run on {self.device}")
        return self.frames[name]


def rows_of(pairs: pd.DataFrame) -> int:
    """How many CSV rows stand behind a table of comparisons: a row of the system serves all others."""
    own = pairs[["case_hash", "implementation", "launch"]].drop_duplicates()
    return len(own) + len(pairs[["case_hash", "other"]].drop_duplicates())
