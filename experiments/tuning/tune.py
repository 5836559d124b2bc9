"""Searches tiles point by point: plans, compiles, times, and writes rows and the tuned table."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from tqdm import tqdm

from ..measure.method import method_revision
from ..workload.case import Case
from ..workload.config import PlanError
from ..workload.settings import TimingSettings
from .measure import Tune
from .plan import STUDY, Point, TuneConfig, fitting, layer_of, plan_cases, plan_point

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from ..table.run import Run
    from .layer import Layer
    from .search import AnyTiles, Choice
    from .space import Candidate


SKEWS = (0.0, 1.2)
"""A tile must be fast over these Zipf exponents, by the geometric mean; they are those of the study `headline`."""
POINT_S, LAYER_S = 8.0, 15.0
"""For the forecast: seconds per point, and to compile for a layer, on an H200 with 16 cores."""
WEIGHTS_BYTES = 16e9
"""How many bytes several sets of a layer's weights may take together."""


Identity = dict[str, Any]
"""The columns `implementation`, `implementation_version`, `revision` and `method_revision`."""


def identity(case: Case) -> Identity:
    """What decides a choice: the revision of `fast`, and that of the search and its timing."""
    from ..implementation import registry

    fast = registry.get("fast")
    return {
        "implementation": fast.name, "implementation_version": fast.version(), "revision": fast.revision_of(case),
        "method_revision": method_revision("tune", asdict(TimingSettings())),
    }  # fmt: skip


def tune(config: TuneConfig) -> None:
    """Plans, compiles, searches point by point, and writes rows and table. Raises PlanError for what cannot be done."""
    cases = plan_cases(config)
    layers = len({case.weights_key for case in cases})
    minutes = math.ceil((LAYER_S * layers + POINT_S * len(cases)) / 60)
    skews = " and ".join(f"{skew:g}" for skew in SKEWS)
    print(f"points: {len(cases)}, layers: {layers}, skew {skews}; about {minutes} min on an H200", flush=True)
    for case in cases if config.dry_run else ():
        print(f"  {case}")
    if config.dry_run:
        return
    from tritonmoe_bench.kernels.fast import tuned

    from ..table.provenance import INTERPRETER, environment
    from ..table.run import Run

    facts = environment()
    if facts["device"] == INTERPRETER:
        raise PlanError("no NVIDIA GPU here: tiles are tuned by timing them on the GPU that they are for")
    cases = fitting(cases, facts["memory_bytes"])
    path = config.tables / f"{facts['device']}.json"
    try:
        table = tuned.load(path)
    except ValueError as error:
        raise PlanError(str(error)) from None
    run = Run.open(config.results, STUDY, Tune(), facts, new=config.new_run)
    todo = [case for case in cases if config.force or not _is_done(run, case, table)]
    print(f"run {run.record['run_id']} on {facts['device']}: {len(cases) - len(todo)} points are done, "
          f"{len(todo)} to do; timings go to {run.path}, choices to {path}", flush=True)  # fmt: skip
    try:
        _tune_points(todo, run, path, config.jobs or len(os.sched_getaffinity(0)))
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; finished points are in {path}, the same command goes on from there") from None
    if run.path.exists():
        run.finish()
    if path.exists():
        print(table_text(cases, tuned.load(path)))


def _is_done(run: Run, case: Case, table: dict) -> bool:
    frame = run.read()
    if frame.empty or case.tokens not in table.get(layer_of(case), {}):
        return False
    choices = frame[(frame["stage"] == "choice") & _of(frame, identity(case))]
    return bool((choices["case_hash"] == case.case_hash).any())


def _of(frame: pd.DataFrame, mine: Identity) -> pd.Series:
    """Which rows are of this version and these revisions."""
    same = [frame[name].astype(str) == str(value) for name, value in mine.items()]
    return functools.reduce(operator.and_, same)


def _tune_points(todo: Sequence[Case], run: Run, path: Path, jobs: int) -> None:
    import torch

    from ..table.provenance import sm_clock_mhz
    from .search import search
    from .timer import DeviceLost, GpuTimer

    device = torch.device("cuda", torch.cuda.current_device())
    points = [plan_point(case, device) for case in todo]
    rejected = _compile(points, device, jobs)
    holder = _LayerHolder(device, run.environment["memory_bytes"])
    bar = tqdm(list(zip(points, rejected)), unit="point", smoothing=0.3)
    for point, uncompiled in bar:
        bar.set_description(f"{point.case.model} {point.case.tokens}")
        mine = identity(point.case)
        lost = broken(run, mine)
        refused = {(candidate.stage, str(candidate)): why for candidate, why in uncompiled.items()} | lost
        clock = sm_clock_mhz(run.environment["device_uuid"])

        def emit(case: Case, row: dict[str, Any], clock: int | None = clock, mine: Identity = mine) -> None:
            run.append(case, {**mine, "sm_clock_mhz": clock, **row})
            bar.set_postfix_str(row["stage"])

        timer = GpuTimer(point.case, holder.layers(point.case), run.environment["l2_bytes"], refused, emit)
        try:
            with torch.inference_mode():
                choice = search(point.candidates, point.heuristic, timer, SKEWS)
        except DeviceLost as error:
            raise SystemExit(f"error: {error}; the same command goes on from this point, without it") from None
        del timer
        if choice is None:
            bar.write(f"{point.case}: no tiles give a right result, {run.path} says why")
            continue
        emit(point.case, choice_row(choice, point.heuristic))
        _keep(path, point.case, choice.tiles)
        gain = "nothing else runs" if choice.gain is None else f"{100 * (choice.gain - 1):+.1f} %"
        bar.write(f"{point.case.model} {point.case.tokens}: {choice.tiles or 'heuristic'} ({gain})")


def _keep(path: Path, case: Case, tiles: AnyTiles | None) -> None:
    """Writes one entry, beside those that other processes have written by now."""
    from tritonmoe_bench.kernels.fast import tuned
    from tritonmoe_bench.kernels.fast.tile_types import JoinedTiles

    from ..table.locks import take

    with contextlib.closing(cast("IO[str]", take(path.with_suffix(".lock")))):
        table = tuned.load(path)
        assert not isinstance(tiles, JoinedTiles)  # only the heuristic gives them
        table.setdefault(layer_of(case), {})[case.tokens] = tiles
        tuned.save(path, table)


def broken(run: Run, mine: Identity) -> dict[tuple[str, str], str]:
    """What has broken the GPU's context in this run, by stage and config, with the reason: it is not tried again."""
    from .timer import LOST

    frame = run.read()
    if frame.empty:
        return {}
    frame = frame[_of(frame, mine)]
    frame = frame[frame["reason"].fillna("").str.startswith(LOST)]
    return dict(zip(zip(frame["stage"], frame["config"]), frame["reason"]))


def _compile(points: Sequence[Point], device: torch.device, jobs: int) -> list[dict[Candidate, str]]:
    import torch

    from ..targets.gpus import TARGETS
    from .compile import compile_points

    target = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if not points:
        return []
    if target not in TARGETS:
        print(f"{target} is none of {', '.join(TARGETS)}: each tile is compiled when it is first timed", flush=True)
        return [{} for _ in points]
    start = time.monotonic()
    tell = functools.partial(print, flush=True)
    rejected = compile_points([(point.case, point.candidates) for point in points], target, jobs, tell)
    out = {candidate: why for refused in rejected for candidate, why in refused.items()}
    reasons = sorted(f"{candidate.stage} {candidate}: {why}" for candidate, why in out.items())
    tell(f"compiled in {time.monotonic() - start:.0f} s, {len(reasons)} tiles are out", *reasons, sep="\n  ")
    return rejected


class _LayerHolder:
    """The weights of the current layer; those of another are dropped first, as both may not fit."""

    def __init__(self, device: torch.device, memory_bytes: int) -> None:
        self.device, self.most_bytes = device, min(WEIGHTS_BYTES, memory_bytes / 2)
        self._key: tuple = ()
        self._layers: list[Layer] = []

    def layers(self, case: Case) -> list[Layer]:
        import torch

        from .layer import make_layers

        if self._key != case.weights_key:
            self._layers = []
            torch.cuda.empty_cache()
            self._layers, self._key = make_layers(case, self.device, self.most_bytes), case.weights_key
        return self._layers


def choice_row(choice: Choice, heuristic: AnyTiles) -> dict[str, Any]:
    """The columns of the row that says what went into the table."""
    return {
        "stage": "choice", "round": 0, "launch": "graph", "timing_method": "none", "status": "ok", "reason": "",
        "config": str(choice.tiles) if choice.tiles else f"heuristic {heuristic}", "gain": choice.gain,
    }  # fmt: skip


def table_text(cases: Sequence[Case], table: dict) -> str:
    """What the table now says of the cases, a line each."""
    lines = []
    for case in cases:
        entries = table.get(layer_of(case), {})
        if case.tokens in entries:
            lines.append(f"{case.model:16} {case.quant:9} {case.tokens:4} {entries[case.tokens] or 'heuristic'}")
    return "\n".join(lines)
