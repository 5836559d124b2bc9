"""Compiles all that `make tune` will launch, in parallel and ahead of it, into Triton's cache on disk.

A tile whose kernel does not compile, does not fit, or spills is known before it can take the GPU's context with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .case import Case
from .portability import compile_all
from .tune_record import encode
from .tune_space import Candidate

RECORD = Path(__file__).with_name("tune_record.py")
USABLE = ("ok", "misses_matrix_unit")
"""Statuses of portability.csv with which a kernel may still be timed."""

Point = tuple[Case, Sequence[Candidate]]


def compile_points(points: Sequence[Point], target: str, jobs: int) -> tuple[int, list[dict[Candidate, str]]]:
    """(kernels compiled, by point the candidates that cannot be used here with the reason). target: of `TARGETS`.

    Raises RuntimeError if the launches cannot be recorded.
    """
    launches: dict[str, dict[str, Any]] = {}
    users: list[tuple[int, int, list[str]]] = []
    for line in _record(points, target):
        keys = []
        for launch in line["launches"]:
            key = json.dumps([launch["module"], launch["kernel"], launch["specialization"]])
            launches.setdefault(key, launch)
            keys.append(key)
        if line["candidate"] is not None:
            users.append((line["point"], line["candidate"], keys))
    # The largest kernels first, so that no process is left alone with one at the end.
    order = sorted(launches, key=lambda key: "gemm" not in launches[key]["module"])
    rows = dict(zip(order, compile_all([launches[key] for key in order], jobs)))
    rejected: list[dict[Candidate, str]] = [{} for _ in points]
    for number, place, keys in users:
        for row in (rows[key] for key in keys):
            if row["status"] not in USABLE:
                rejected[number][points[number][1][place]] = f"{row['status']}: {row['reason']}"
    return len(launches), rejected


def _record(points: Sequence[Point], target: str) -> list[dict[str, Any]]:
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(RECORD), target], input=json.dumps([encode(*point) for point in points]),
        capture_output=True, text=True, env=settings,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"recording the launches for {target} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]
