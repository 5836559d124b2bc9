"""Which runs the rows come from, and which rows the code has left behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ...analysis.age import older_methods, older_revisions, unchanged_since
from ...analysis.lacking import lacking
from ...measure.revisions import lock_hash
from ..section import Material
from ..tables import provenance_table
from ..texts import say

TITLE, ORDER = "Device and provenance", 90


def content(material: Material) -> dict[str, Any]:
    frames = material.frames
    older = {study for entry in older_methods(frames) + older_revisions(frames) for study in entry.studies}
    gaps = {study: lacking(study, rows) for study, rows in frames.items() if "case_hash" in rows}
    return {"table": provenance_table(frames, older), "older": older_rows(frames), "lacking": gaps}


def older_rows(frames: Mapping[str, pd.DataFrame]) -> str:
    """The paragraph on the rows that the code has left behind, by name, and the lock of the code."""
    return say(
        "age.j2", "older_rows", methods=older_methods(frames), revisions=older_revisions(frames), lock=lock_hash(),
        unchanged=unchanged_since(frames),
    )  # fmt: skip
