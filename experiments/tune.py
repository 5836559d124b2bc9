"""Writes the tuned table of `fast` for this machine's GPU: which tiles are the fastest, by layer and tokens.

    python experiments/tune.py
    python experiments/tune.py model=mixtral tokens=[1,8,32]

conf/tune.yaml says what every key means. Compiles all candidates (experiments/tune_space.py) ahead, times the stages,
then whole forwards of the best against the heuristic, in turns, and keeps the heuristic where none is clearly faster.
Timings go to results/<device>/tune.csv, choices to kernels/tuned/<device>.json, each as soon as it is known; the same
command again goes on where it was cut.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    runpy.run_path(str(Path(__file__).resolve().parent / "checkout.py"))

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from tritonmoe_bench.experiments import schema
from tritonmoe_bench.experiments.case import Case
from tritonmoe_bench.experiments.plan import CONF, GridConfig, PlanError, StudyConfig, SweepConfig, make_plan

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.experiments.run import Run
    from tritonmoe_bench.experiments.tune_layer import Layer
    from tritonmoe_bench.experiments.tune_search import Choice, Tiles
    from tritonmoe_bench.experiments.tune_space import Candidate

ROOT = CONF.parent
STUDY = "tune"
SKEWS = (0.0, 1.2)
"""Zipf exponents over which a tile must be fast, by the geometric mean; those of the study `headline`."""
POINT_S, START_S = 7.0, 40.0
"""For the forecast: seconds a point, and to compile, as an H200 with 16 cores is expected to take."""


@dataclass
class TuneConfig:
    """conf/tune.yaml says what each key means."""

    model: Any = None
    tokens: Any = None
    tp: Any = 1
    ep: Any = 1
    seed: int = 1
    results: str = "results"
    tables: str = "kernels/tuned"
    jobs: int = 0
    dry_run: bool = False
    force: bool = False
    new_run: bool = False


@dataclass(frozen=True)
class Point:
    """A layer and a number of tokens, with what is tried for it."""

    case: Case
    heuristic: Tiles
    candidates: Sequence[Candidate]


def read_config(arguments: Sequence[str]) -> TuneConfig:
    """The configuration of a command line. Raises PlanError, in one line, for a typo or an impossible value."""
    known = ", ".join(TuneConfig.__dataclass_fields__)
    config = OmegaConf.merge(OmegaConf.structured(TuneConfig), OmegaConf.load(CONF / "tune.yaml"))
    for text in arguments:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            raise PlanError(f"{text}: not of the form key=value; keys are {known}") from None
        key = override.key_or_group
        if key not in TuneConfig.__dataclass_fields__:
            close = difflib.get_close_matches(key, TuneConfig.__dataclass_fields__, n=1)
            raise PlanError(f"{key}: {f'did you mean {close[0]}? ' if close else ''}keys are {known}")
        if override.is_sweep_override():
            raise PlanError(f"{text}: several values stand in brackets, {key}=[..,..]")
        try:
            OmegaConf.update(config, key, override.value())
        except OmegaConfBaseException as error:
            raise PlanError(f"{text}: {str(error).splitlines()[0]}") from None
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def plan_cases(config: TuneConfig) -> list[Case]:
    """The cases with skew 0, in an order in which neighbours share weights. Raises PlanError."""
    models = [config.model] if isinstance(config.model, str) else list(config.model or [])
    if not models:
        raise PlanError("model is an empty list: give at least one")
    grid = GridConfig(models=models)
    sweep = SweepConfig(
        study=StudyConfig(name=STUDY, grids=[grid]), tokens=config.tokens, tp=config.tp, ep=config.ep, seed=config.seed
    )
    return make_plan(sweep, ["fast"]).cases


def code_hash() -> str:
    """Hash of what decides a choice: the kernels, the timing, and the search with its candidates. Not of the tables."""
    from tritonmoe_bench.experiments import registry

    fast = registry.get("fast")
    sources = {*registry.SHARED_CODE, Path(inspect.getfile(type(fast))), *fast.code()}
    sources |= set(Path(__file__).resolve().parent.glob("tune*.py"))
    digest = hashlib.sha256()
    for path in sorted(path for path in sources if path.suffix == ".py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def tune(config: TuneConfig) -> None:
    """Plans, compiles, searches point by point, and writes rows and table. Raises PlanError for what cannot be done."""
    cases = plan_cases(config)
    layers, minutes = len({case.weights_key for case in cases}), (START_S + POINT_S * len(cases)) / 60
    skews = " and ".join(f"{skew:g}" for skew in SKEWS)
    print(f"{len(cases)} points of {layers} layers, skew {skews}, about {minutes:.0f} minutes on an H200", flush=True)
    for case in cases if config.dry_run else ():
        print(f"  {case}")
    if config.dry_run:
        return
    from tritonmoe_bench.experiments.provenance import environment
    from tritonmoe_bench.experiments.run import Run
    from tritonmoe_bench.kernels import tuned

    facts = environment()
    if facts["device_uuid"] == "":
        raise PlanError("no NVIDIA GPU here: tiles are tuned by timing them on the GPU that they are for")
    needed = max(case.weight_bytes for case in cases)
    if needed > 0.9 * facts["memory_bytes"]:
        raise PlanError(f"the largest layer takes {needed / 1e9:.0f} GB, the GPU has {facts['memory_bytes'] / 1e9:.0f}")
    path = ROOT / config.tables / f"{facts['device']}.json"
    try:
        table = tuned.load(path)
    except ValueError as error:
        raise PlanError(str(error)) from None
    run = Run.open(ROOT / config.results, STUDY, "tune", facts, new=config.new_run)
    version = code_hash()
    todo = [case for case in cases if config.force or not _is_done(run, case, version, table)]
    print(f"run {run.record['run_id']} on {facts['device']}: {len(cases) - len(todo)} points are done, "
          f"{len(todo)} to do; timings go to {run.path}, choices to {path}", flush=True)  # fmt: skip
    try:
        _tune_points(todo, run, path, table, version, config.jobs or len(os.sched_getaffinity(0)))
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; finished points are in {path}, the same command goes on from there") from None
    if run.path.exists():
        run.finish()
    if path.exists():
        print(table_text(cases, tuned.load(path)))


def _is_done(run: Run, case: Case, version: str, table: dict) -> bool:
    frame = schema.read(run.path, schema.TUNE_KEY)
    if frame.empty or case.tokens not in table.get(shape_of(case), {}):
        return False
    mine = frame[(frame["run_id"] == run.record["run_id"]) & (frame["stage"] == "choice")]
    return bool(((mine["case_hash"] == case.case_hash) & (mine["code_hash"] == version)).any())


def shape_of(case: Case) -> tuple[int, int, int, int]:
    """The key of a tuned table."""
    return case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim


def _tune_points(todo: Sequence[Case], run: Run, path: Path, table: dict, version: str, jobs: int) -> None:
    import torch

    from tritonmoe_bench.experiments.provenance import sm_clock_mhz
    from tritonmoe_bench.experiments.tune_search import search
    from tritonmoe_bench.experiments.tune_timer import DeviceLost, GpuTimer
    from tritonmoe_bench.kernels import tuned

    device = torch.device("cuda", torch.cuda.current_device())
    points = [plan_point(case, device) for case in todo]
    rejected = _compile(points, device, jobs)
    identity = {"implementation": "fast", "implementation_version": tuned_version(), "code_hash": version}
    holder = _LayerHolder(device)
    bar = tqdm(list(zip(points, rejected)), unit="point", smoothing=0.3)
    for point, refused in bar:
        bar.set_description(f"{point.case.model} {point.case.tokens}")
        clock = sm_clock_mhz(run.environment["device_uuid"])

        def emit(case: Case, row: dict[str, Any], clock: int = clock) -> None:
            run.append(case, {**identity, "sm_clock_mhz": clock, **row})

        timer = GpuTimer(point.case, holder.layer(point.case), run.environment["l2_bytes"], refused, emit)
        try:
            with torch.inference_mode():
                choice = search(point.candidates, point.heuristic, timer, SKEWS)
        except DeviceLost as error:
            raise SystemExit(f"error: {error}; the same command goes on from this point") from None
        emit(point.case, choice_row(choice, point.heuristic))
        table.setdefault(shape_of(point.case), {})[point.case.tokens] = choice.tiles
        tuned.save(path, table)
        gain = "nothing else runs" if choice.gain is None else f"{100 * (choice.gain - 1):+.1f} %"
        bar.write(f"{point.case}: {choice.tiles or 'heuristic'} ({gain})")
        del timer


def plan_point(case: Case, device: torch.device) -> Point:
    """The candidates of a case on a device."""
    import torch

    from tritonmoe_bench.experiments.tune_space import candidates
    from tritonmoe_bench.kernels.fast_tiles import heuristic_tiles

    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    has_bulk = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
    heuristic = heuristic_tiles(device, *shape_of(case), case.tokens)
    return Point(case, heuristic, candidates(case, heuristic, shared, has_bulk))


def _compile(points: Sequence[Point], device: torch.device, jobs: int) -> list[dict[Candidate, str]]:
    import torch

    from tritonmoe_bench.experiments.portability_targets import TARGETS
    from tritonmoe_bench.experiments.tune_compile import compile_points

    target = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if not points or target not in TARGETS:
        print(f"nothing is compiled ahead: {'no points' if not points else target + ' is not known'}", flush=True)
        return [{} for _ in points]
    start = time.monotonic()
    kernels, rejected = compile_points([(point.case, point.candidates) for point in points], target, jobs)
    out = {candidate: why for refused in rejected for candidate, why in refused.items()}
    reasons = sorted(f"{candidate.stage} {candidate}: {why}" for candidate, why in out.items())
    print(f"compiled {kernels} kernels by {jobs} processes in {time.monotonic() - start:.0f} s, "
          f"{len(reasons)} tiles are out", *reasons, sep="\n  ", flush=True)  # fmt: skip
    return rejected


class _LayerHolder:
    """The weights of the current layer; those of another are dropped first, as two may not fit."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._key: tuple = ()
        self._layer: Layer | None = None

    def layer(self, case: Case) -> Layer:
        import torch

        from tritonmoe_bench.experiments.tune_layer import Layer
        from tritonmoe_bench.experiments.workload import Weights

        if self._layer is None or self._key != case.weights_key:
            self._layer = None
            torch.cuda.empty_cache()
            weights = Weights(case, self.device)
            self._layer, self._key = Layer(weights.router(), weights.gate_up(), weights.down()), case.weights_key
        return self._layer


def choice_row(choice: Choice, heuristic: Tiles) -> dict[str, Any]:
    """The columns of the row that says what went into the table."""
    return {
        "stage": "choice", "round": 0, "launch": "graph", "timing_method": "none", "status": "ok", "reason": "",
        "config": str(choice.tiles) if choice.tiles else f"heuristic {heuristic}", "gain": choice.gain,
    }  # fmt: skip


def tuned_version() -> str:
    from tritonmoe_bench.kernels import __version__

    return __version__


def table_text(cases: Sequence[Case], table: dict) -> str:
    """What the table now says of the cases, a line each."""
    lines = []
    for case in cases:
        entries = table.get(shape_of(case), {})
        if case.tokens in entries:
            lines.append(f"{case.model:16} {case.tokens:4} {entries[case.tokens] or 'heuristic'}")
    return "\n".join(lines)


def main() -> None:
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__, (CONF / "tune.yaml").read_text(), sep="\n")
        return
    try:
        tune(read_config(sys.argv[1:]))
    except PlanError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
