"""Compiles what `make tune` will launch, in parallel and ahead of it, into Triton's cache on disk.

A tile whose kernel does not compile, does not fit, or spills is known before it can take the GPU's context with it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from .. import checkout
from ..targets.ahead import keys_in_order
from ..targets.matrix import compile_all
from ..workload.case import Case
from .plan import layer_of
from .record import encode
from .space import Candidate, heights

RECORD = "experiments.tuning.record"
USABLE = ("ok", "misses_matrix_unit")
"""Statuses of portability.csv with which a kernel may still be timed."""

Point = tuple[Case, Sequence[Candidate]]


def compile_points(
    points: Sequence[Point], target: str, jobs: int, tell: Callable[[str], None] = print
) -> list[dict[Candidate, str]]:
    """By point, the candidates that cannot be used here, with the reason. target: of `TARGETS`; tell: takes progress.

    This process finds the kernels in the cache, if it has launched none of them before.

    Raises RuntimeError if the launches cannot be recorded.
    """
    launches: dict[str, dict[str, Any]] = {}
    users: dict[tuple, list[str]] = {}
    fresh = [_new_to_its_layer(points, number) for number in range(len(points))]
    for line in _record(points, fresh, target):
        keys = []
        for launch in line["launches"]:
            key = json.dumps([launch["module"], launch["kernel"], launch["specialization"]])
            launches.setdefault(key, launch)
            keys.append(key)
        if line["candidate"] is not None:
            number, place = line["point"], line["candidate"]
            users[_layer(points[number][0]), fresh[number][place]] = keys
    as_launched = list(dict.fromkeys((launch["module"], launch["kernel"]) for launch in launches.values()))
    tell(f"compiling {len(launches)} kernels by {jobs} processes")
    # The largest kernels first, so that no process is left alone with one at the end.
    order = sorted(launches, key=lambda key: "gemm" not in launches[key]["module"])
    rows = dict(zip(order, compile_all([launches[key] for key in order], jobs, as_launched)))
    keys_in_order(as_launched)
    rejected: list[dict[Candidate, str]] = [{} for _ in points]
    for refused, (case, candidates) in zip(rejected, points):
        for candidate in candidates:
            for row in (rows[key] for key in users[_layer(case), candidate]):
                if row["status"] not in USABLE:
                    refused[candidate] = f"{row['status']}: {row['reason']}"
    return rejected


def _layer(case: Case) -> tuple:
    """What the kernels of a candidate are compiled for: the layer, whatever the number of tokens."""
    return (*layer_of(case), case.dtype)


def _new_to_its_layer(points: Sequence[Point], number: int) -> list[Candidate]:
    case, candidates = points[number]
    seen = {candidate for other, found in points[:number] if _layer(other) == _layer(case) for candidate in found}
    return [candidate for candidate in candidates if candidate not in seen]


def _record(points: Sequence[Point], fresh: Sequence[Sequence[Candidate]], target: str) -> list[dict[str, Any]]:
    encoded = [encode(case, new, heights(found)) for (case, found), new in zip(points, fresh)]
    done = subprocess.run(
        [*checkout.program(RECORD), target],
        input=json.dumps(encoded),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=checkout.compiler_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"recording the launches for {target} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]
