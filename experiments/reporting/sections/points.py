"""Every point of every study that timed whole layers: each system's latency, and which is the fastest.

A new study stands here without being named.
"""

from __future__ import annotations

from typing import Any

from ...analysis import age
from .. import again, tables
from ..points import point_table, timed_layers
from ..section import Material

TITLE, ORDER = "Every point", 50


def content(material: Material) -> dict[str, Any] | None:
    studies = []
    for name in dict.fromkeys(name for frames in material.gpus.values() for name in frames):
        frames = {gpu: rows[name] for gpu, rows in material.gpus.items() if name in rows and timed_layers(rows[name])}
        if frames:
            own = material.frames if name in material.frames else {}
            studies.append({
                "name": name, "table": point_table(name, frames), "age": age.commits_of([f"{name}.csv"], own),
                "fastest": tables.winners(next(iter(frames.values()))), "again": again.command([f"{name}.csv"], own),
            })  # fmt: skip
    return {"studies": studies} if studies else None
