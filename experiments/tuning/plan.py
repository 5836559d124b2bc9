"""What `make tune` is asked for: its configuration, the points that it tunes, and what is tried for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritonmoe_bench import ROOT

from ..sweeping.plan import make_plan
from ..workload.arguments import PlanError, key
from ..workload.case import QUANTS, Case
from ..workload.config import GridConfig, StudyConfig, SweepConfig, model_names

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.kernels.target import Target

    from .search import AnyTiles
    from .space import Candidate

STUDY = "tune"
HEADLINE = ["mixtral", "qwen2_paper", "deepseek_v3", "qwen3_30b_a3b"]
"""The shapes of the headline study and of the paper."""
SPARE = 0.8
"""Share of the GPU's memory that the weights of a layer may take."""


@dataclass
class TuneConfig:
    """The keys of a tuning."""

    model: list[str] = key(HEADLINE, "shapes, one or a list of", model_names)
    tokens: list[int] = key([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], "an entry serves down to half of its tokens")
    quant: list[str] = key(["none"], "the weights' format, none for 16 bits; one or a list of", QUANTS)
    tp: list[int] = key([1], "tensor-parallel shard: one of so many equal slices of ffn_dim; one number or a list")
    ep: list[int] = key([1], "expert-parallel shard: one of so many equal groups of experts; one number or a list")
    seed: int = key(1, "of the first routing; studies measure another one, 0")
    results: Path = key(ROOT / "results", "folder; every timing becomes a row of <results>/<device>/tune.csv")
    tables: Path = key(
        ROOT / "kernels" / "fast" / "tuned", "folder of <device>.json, which `fast` reads from the default folder"
    )
    jobs: int = key(0, "processes that compile; 0 for one per core")
    dry_run: bool = key(False, "print the points, and run nothing")
    force: bool = key(False, "tune again what this run already holds")
    new_run: bool = key(False, "move the current run into the archive and start one")


@dataclass(frozen=True)
class Point:
    """A layer and a number of tokens, with what is tried for it."""

    case: Case
    heuristic: AnyTiles
    candidates: Sequence[Candidate]


def plan_cases(config: TuneConfig) -> list[Case]:
    """The cases with skew 0, in an order in which neighbours share weights. Raises PlanError."""
    grid = GridConfig(models=config.model)
    sweep = SweepConfig(
        study=StudyConfig(name=STUDY, grids=[grid]),
        tokens=config.tokens,
        quant=config.quant,
        tp=config.tp,
        ep=config.ep,
        seed=config.seed,
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


def layer_of(case: Case) -> tuple[str, int, int, int, int]:
    """The key of a tuned table."""
    return case.quant, case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim


def heuristic_of(case: Case, target: Target) -> AnyTiles:
    """What `fast` takes where no table knows better."""
    from tritonmoe_bench.kernels.fast.choose import heuristic_tiles
    from tritonmoe_bench.kernels.fast.choose_packed import format_tiles
    from tritonmoe_bench.kernels.formats import formats

    shape = (case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim)
    if case.quant == "none":
        return heuristic_tiles(target, *shape, case.tokens)
    return format_tiles(formats()[case.quant], target, shape, case.tokens, None)


def plan_point(case: Case, device: torch.device) -> Point:
    """The candidates of a case on a device."""
    from tritonmoe_bench.kernels.target import target_of

    from .space import candidates

    target = target_of(device)
    heuristic = heuristic_of(case, target)
    return Point(case, heuristic, candidates(case, heuristic, target.shared_memory_bytes, target.has_bulk_copies))
