"""What `make tune` is asked for: its configuration, the points that it tunes, and what is tried for each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..sweeping.plan import make_plan
from ..workload.case import Case
from ..workload.config import CONF, GridConfig, PlanError, StudyConfig, SweepConfig

if TYPE_CHECKING:
    import torch

    from .search import Tiles
    from .space import Candidate

STUDY = "tune"
SPARE = 0.8
"""Share of the GPU's memory that the weights of a layer may take."""


@dataclass
class TuneConfig:
    """conf/tune.yaml says what each key means."""

    model: Any = None
    tokens: Any = None
    tp: Any = 1
    ep: Any = 1
    seed: int = 1
    results: str = "results"
    tables: str = "kernels/fast/tuned"
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


def fitting(cases: Sequence[Case], memory_bytes: int) -> list[Case]:
    """The cases whose weights fit on the GPU; says which do not. Raises PlanError if none does."""
    fit = [case for case in cases if case.weight_bytes <= SPARE * memory_bytes]
    for case in {case.weights_key: case for case in cases if case not in fit}.values():
        print(f"left out: {case.model} takes {case.weight_bytes / 1e9:.1f} GB, "
              f"{SPARE:.0%} of the GPU's memory are {SPARE * memory_bytes / 1e9:.1f} GB")  # fmt: skip
    if not fit:
        raise PlanError("no layer fits on this GPU: give a smaller model, or a shard of one, tp=8 or ep=8")
    return fit


def shape_of(case: Case) -> tuple[int, int, int, int]:
    """The key of a tuned table."""
    return case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim


def plan_point(case: Case, device: torch.device) -> Point:
    """The candidates of a case on a device."""
    from tritonmoe_bench.kernels.fast.choose import heuristic_tiles
    from tritonmoe_bench.kernels.target import target_of

    from .space import candidates

    target = target_of(device)
    heuristic = heuristic_tiles(target, *shape_of(case), case.tokens)
    found = candidates(case, heuristic, target.shared_memory_bytes, target.has_bulk_copies)
    return Point(case, heuristic, found)
