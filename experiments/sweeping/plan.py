"""From configuration to the list of cases: the structured configs, their checks, and what a sweep will cost."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from ..measure.measurement import Measurement, measurements
from ..measure.method import method_revision
from ..table.limits import LIMIT
from ..workload.arguments import WANTED
from ..workload.case import DTYPE_NAMES, Case
from ..workload.config import VARIANT, GridConfig, ModelConfig, PlanError, SweepConfig, load_model, systems
from ..workload.layer import PLAIN_LAYER
from ..workload.recorded import DRAWN, chosen, spelled_out
from ..workload.shards import shard, shared_part

ConfigStore.instance().store(name="schema", node=SweepConfig)


@dataclass(frozen=True)
class Plan:
    """What a sweep will do: cases in an order in which neighbours share weights, systems, modes of measuring.

    skipped: by implementation, the case_hash of the cases that its grids leave out; method_revision: of its rows.
    """

    study: str
    measurement: Measurement
    cases: list[Case]
    implementations: list[str]
    modes: list[str]
    skipped: dict[str, frozenset[str]] = field(default_factory=dict)
    method_revision: str = ""

    def cases_of(self, implementation: str) -> list[Case]:
        """The cases that an implementation runs."""
        skipped = self.skipped.get(implementation, frozenset())
        return [case for case in self.cases if case.case_hash not in skipped]

    @property
    def points(self) -> int:
        """Pairs of a case and an implementation that runs it."""
        return sum(len(self.cases_of(name)) for name in self.implementations)

    @property
    def results(self) -> int:
        """How often something is measured: each point by each mode."""
        return self.points * len(self.modes)

    def gpu_bytes(self) -> int:
        """Device memory that the largest case takes, in bytes."""
        return max(map(self.measurement.gpu_bytes, self.cases))

    def minutes(self) -> float:
        """An upper forecast of the GPU time: process starts, set-up of each case, and samples of each row.

        The committed studies that came in one go took less, some nearly as much, some less than half. The start of a
        process and the kernels that it compiles, anew for each layer and batch size, are the largest part: a system
        that is not installed ends in 2 s.
        """
        cases = [self.cases_of(name) for name in self.implementations]
        layers = sum(len({case.weights_key for case in mine}) for mine in cases)
        compiled = sum(len({(case.weights_key, case.tokens) for case in mine}) for mine in cases)
        systems = sum(bool(mine) for mine in cases)
        measured = self.measurement.seconds(self.results, self.points, systems, self.modes)
        return (14.0 * systems + 1.0 * layers + 0.8 * compiled + measured) / 60


def make_plan(config: SweepConfig, known_implementations: Sequence[str]) -> Plan:
    """The plan of a configuration. Raises PlanError for anything that cannot be run, before anything is."""
    study = config.study
    _check_settings(config)
    _check_plain("study.name", study.name)
    if study.kind not in measurements():
        raise PlanError(f"study.kind={study.kind}: allowed are {', '.join(measurements())}")
    measurement = measurements()[study.kind]
    everything = [name for name in known_implementations if not name.startswith(VARIANT)]
    usual = _names("study.implementations", study.implementations or None, everything, known_implementations)
    implementations = _names("implementations", config.implementations, usual, known_implementations)
    modes = _names("modes", config.modes, study.modes, measurement.modes)
    always: set[str] = set(implementations) - set(usual)
    if measurement.limited and LIMIT in known_implementations:
        # Every row is compared with the measured limit.
        implementations = [LIMIT, *(name for name in implementations if name != LIMIT)]
        always.add(LIMIT)
    cases: dict[str, Case] = {}
    asked: dict[str, set[str]] = {name: set() for name in implementations}
    for grid in study.grids:
        only = _names("grids.implementations", grid.implementations or None, usual, known_implementations)
        running = [name for name in implementations if name in {*only, *always}]
        for case in _grid_cases(config, grid) if running else []:
            cases.setdefault(case.case_hash, case)
            for name in running:
                asked[name].add(case.case_hash)
    if not cases:
        raise PlanError(f"study={study.name} has no points: give it grids, see conf/study/")
    ordered = sorted(cases.values(), key=lambda case: list(cases).index(case.case_hash))
    groups = {case.weights_key: index for index, case in reversed(list(enumerate(ordered)))}
    ordered.sort(key=lambda case: groups[case.weights_key])
    skipped = {name: frozenset(cases) - hashes for name, hashes in asked.items()}
    revision = method_revision(study.kind, asdict(config.timing))
    return Plan(study.name, measurement, ordered, implementations, modes, skipped, revision)


def _grid_cases(config: SweepConfig, grid: GridConfig) -> list[Case]:
    named = _values("model", config.models, grid.models, str)
    models = [config.model] if config.model is not None else [load_model(name) for name in named]
    tokens = _values("tokens", config.tokens, grid.tokens, int)
    skews = _values("skew", config.skew, grid.skew, float)
    dtypes = [DTYPE_NAMES.get(name, name) for name in _values("dtype", config.dtype, grid.dtype, str)]
    quants = _values("quant", config.quant, grid.quant, str)
    routings = _routings(_values("routing", config.routing, grid.routing, str))
    layers = _values("layer", config.layer, grid.layer, str)
    ways = list(itertools.product(_values("tp", config.tp, grid.tp, int), _values("ep", config.ep, grid.ep, int)))
    cases = []
    for model in models:
        _check_plain("model.name", model.name)
    kinds = itertools.product(models, ways, dtypes, quants, routings, layers)
    for model, (tp, ep), dtype, quant, routing, layer in kinds:
        shapes = itertools.product(
            grid.num_experts or [model.num_experts], grid.top_k or [model.top_k], grid.ffn_dim or [model.ffn_dim]
        )
        own = skews if routing == DRAWN or config.skew is not None else [0.0]  # recorded routing has its own skew
        for (experts, top_k, ffn), skew, count in itertools.product(shapes, own, tokens):
            name, experts, ffn = shard(model.name, experts, top_k, ffn, tp, ep)
            shape = (name, experts, top_k, model.hidden_dim, ffn)
            facts = shared_part(model.name, model.facts(), tp) if layer == "native" else PLAIN_LAYER
            packed = model.native_quant if quant == "native" else quant
            try:
                if routing != DRAWN:
                    chosen(routing, experts, top_k, count, config.seed)
                gating = _gating(config.gating, layer, model)
                cases.append(Case(*shape, count, skew, config.seed, dtype, gating, packed, routing, layer, facts))
            except ValueError as error:
                raise PlanError(str(error)) from None
    return cases


def _routings(names: Sequence[str]) -> list[str]:
    """Recordings with their layers spelled out. Raises PlanError."""
    try:
        return [each for name in names for each in spelled_out(name)]
    except ValueError as error:
        raise PlanError(str(error)) from None


def _gating(asked: str, layer: str, model: ModelConfig) -> str:
    """The gating of a point. Raises ValueError for another one than the native layer's own."""
    if layer == "native" and asked not in ("softmax", "native", model.native_gating):
        raise ValueError(f"gating={asked}: layer=native of {model.name} has {model.native_gating}")
    if asked == "native" and model.native_lacks:
        raise ValueError(f"gating=native: not of {model.name}, {model.native_lacks}")
    return model.native_gating if "native" in (asked, layer) else asked


def _check_settings(config: SweepConfig) -> None:
    timing = {f"timing.{name}": value for name, value in asdict(config.timing).items()}
    for name, value in {"timeout_s": config.timeout_s, **timing}.items():
        if not 0 < value < math.inf:
            raise PlanError(f"{name}={value}: a number above 0 is needed")


def _check_plain(key: str, name: str) -> None:
    """Rows and files carry the name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise PlanError(f"{key}={name}: allowed are letters, digits, _, - and .")


def _values(name: str, given: Any, default: Sequence, kind: type) -> list:
    """The values of one axis: those given, one or a list, else the study's."""
    values = list(default) if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    if not values:
        raise PlanError(f"{name} is an empty list: give at least one value")
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = whole or (isinstance(value, float) and kind is float)
        if not (isinstance(value, str) if kind is str else number):
            raise PlanError(f"{name}={value}: {WANTED[kind]} is needed, or a list such as {name}=[..,..]")
    return [kind(value) for value in values]


def _names(name: str, given: Any, default: Sequence[str], known: Sequence[str]) -> list[str]:
    """The systems or modes that are chosen, each once, with the sets of conf/systems.yaml spelled out."""
    sets = systems() if name.endswith("implementations") else {}
    chosen = [each for value in _values(name, given, default or known, str) for each in sets.get(value, [value])]
    for value in chosen:
        if value not in known:
            from ..implementation.registry import broken  # asked only here: it imports every adapter

            allowed = f"allowed are {', '.join(known)}" + f", and the sets {', '.join(sets)}" * bool(sets)
            raise PlanError(f"{name}={value}: {dict(broken()).get(value) or allowed}")
    return list(dict.fromkeys(chosen))
