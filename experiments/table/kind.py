"""A kind of row: the table that rows of one kind of measurement make, and what its failures look like."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pandas as pd

from .columns import FORWARD_KEY, Column, declare


class Kind:
    """The table of one kind of measurement. A class that names its `kind` has all of these attributes.

    kind: as studies and messages call it; columns: of its CSV, in order; key: the columns that tell one row of a run
    from another; mode_column: the one that holds the mode of measuring; blank: what a row says, beside mode, status and
    reason, where there is no result; depends: the versions of experiments/measure/method.py that its numbers depend
    on; timed: whether they depend on the timing settings too; limited: whether its latencies are compared with the
    measured limit, which then joins every run.
    """

    kind: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    key: ClassVar[tuple[str, ...]] = FORWARD_KEY
    mode_column: ClassVar[str] = "launch"
    blank: ClassVar[Mapping[str, str]] = MappingProxyType({"timing_method": "none"})
    depends: ClassVar[tuple[str, ...]] = ("workload", "latency")
    timed: ClassVar[bool] = True
    limited: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "columns" in vars(cls):
            declare(cls.columns)

    @property
    def point(self) -> tuple[str, ...]:
        """The columns that all rows of one measurement have in common: of a case, by a system, in a mode."""
        return ("case_hash", "implementation", self.mode_column)

    def failed(self, mode: str, status: str, reason: str) -> dict[str, Any]:
        """What tells, in a row, that a point gave no result, and why; the reason in one line."""
        return {**self.blank, self.mode_column: mode, "status": status, "reason": " ".join(reason.split())[:300]}

    def complete(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Of rows of this kind, those that stand for a whole measurement: without them others may be lacking."""
        return rows
