"""`endtoend`: decode steps of whole models in transformers, with a system in the place of their experts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..implementation.contract import Implementation
from ..table import columns
from ..table.columns import Column
from ..workload.case import BYTES_PER_ELEMENT, Case
from ..workload.recorded import DRAWN
from ..workload.whole import build, experts_of, load_whole, whole_names
from .measurement import Measurement, Rows, by_point

if TYPE_CHECKING:
    import torch

    from .bench import Bench

PEERS = ("eager", "batched_mm", "grouped_mm")
KEPT_GROUPED = "tritonmoe_bench_grouped_mm"
"""transformers' grouped_mm under another name: by its own, generate decodes with batched_mm instead."""
WRONG = 2.0
"""A system's experts are wrong if they are so many times further from float32 than PyTorch's own in 16 bits."""


class EndToEnd(Measurement):
    """results/<device>/endtoend.csv: a decode step of a whole model of conf/whole/, one row per model, batch, system
    and launch mode. `tokens` is the batch: sequences that decode at once, each from one random token, over a static
    cache of 256 positions. The weights are random, and the model routes by itself: `gating` and `skew` do not apply.
    """

    kind = "endtoend"
    depends = ("endtoend",)
    counts_memory = True
    columns = (
        *columns.RUN, *columns.CASE, *columns.IMPLEMENTATION, columns.LAUNCH, columns.TIMING_METHOD, *columns.STATUS,
        *columns.LATENCY, columns.TOKENS_PER_S,
        Column("experts_us", float, "Time of all experts of a step by themselves, launched likewise.", positive=True),
        Column("experts_share", float, "experts_us over p50_us.", positive=True),
        Column("peak_bytes", float, "Most device memory during the generation, weights included.", positive=True),
        Column("model_bytes", float, "Weights of the whole model, in bytes.", positive=True),
        Column("transformers", str, "Version of transformers."),
        *columns.ERRORS, *columns.ENVIRONMENT,
    )  # fmt: skip

    def __init__(self) -> None:
        self._held: tuple[Any, Any] = ((), None)

    def measure(self, implementation: Implementation, case: Case, modes: list[str], bench: Bench) -> Rows:
        """One row per launch mode."""
        reason = _refusal(implementation, case)
        if reason:
            return [self.failed(mode, "unsupported", reason) for mode in modes]
        try:
            import transformers  # noqa: F401
        except ImportError:
            return [self.failed(mode, "unavailable", "pip install 'tritonmoe-bench[transformers]'") for mode in modes]
        return measure_endtoend(implementation, case, modes, bench, self._model(case, bench))

    def planned_config(self, implementation: Implementation, case: Case) -> str:
        """How transformers calls it; the tiles of a layer are not all that a step runs."""
        return f"experts_implementation={implementation.experts_implementation}"

    def _model(self, case: Case, bench: Bench) -> Any:
        """The model of a case, kept for the next one of the same."""
        from ..workload.routing import TORCH_DTYPE

        key = (case.model, case.dtype, case.seed)
        if self._held[0] != key:
            self._held = ((), None)  # the old one first, to have its memory for the new one
            whole = load_whole(case.model)
            self._held = (key, build(whole, TORCH_DTYPE[case.dtype], bench.device.type, case.seed))
        return self._held[1]

    def seconds(self, results: int, points: int, systems: int, modes: Sequence[str]) -> float:
        """4 s a result, half of it for experts that are launched one by one, and 12 s for each model that is made, of
        which a system runs some three batches."""
        return 4.0 * results + 12.0 * points / 3

    def gpu_bytes(self, case: Case) -> int:
        """The experts and routers of all layers and both embeddings: all but some 3 % of a model."""
        if case.model not in whole_names():
            return super().gpu_bytes(case)
        config = load_whole(case.model).config
        ends = 2 * config["vocab_size"] * config["hidden_size"] * BYTES_PER_ELEMENT
        return config["num_hidden_layers"] * case.weight_bytes + ends

    def closing_table(self, rows: pd.DataFrame) -> str:
        timed = rows[rows["p50_us"].notna()] if len(rows) else rows
        if timed.empty:
            return ""
        cells = timed.assign(cell=timed.apply(_cell, axis=1))
        table = by_point(cells, "cell", also=["launch"]).fillna("-")
        return f"{table.to_string()}\na decode step in ms, share of it that the experts take"


def _cell(row: pd.Series) -> str:
    return f"{row['p50_us'] / 1e3:.2f} {100 * row['experts_share']:.0f}%"


def _refusal(implementation: Implementation, case: Case) -> str:
    if not implementation.experts_implementation:
        return "transformers has no experts implementation of it"
    if case.model not in whole_names():
        return f"conf/whole has no {case.model}, it has {', '.join(whole_names())}"
    if case.quant != "none" or case.skew or case.routing != DRAWN:
        return "the model has 16-bit weights and routes by itself: leave quant, skew and routing as they are"
    return ""


def measure_endtoend(implementation: Implementation, case: Case, launches: list[str], bench: Bench, model: Any) -> Rows:
    import torch
    import transformers

    from .decoding import Steps, generate
    from .gate import IncorrectOutput
    from .timing import quantile, time_calls

    experts = experts_of(model)
    shapes = {tuple(module.down_proj.shape) for module in experts.values()}
    own = {(case.num_experts, case.hidden_dim, case.ffn_dim), (case.num_experts, case.ffn_dim, case.hidden_dim)}
    if not shapes <= own:
        raise ValueError(f"the model of conf/whole has experts of {shapes}, the case of {own}")
    model.set_experts_implementation(known_to_transformers(implementation.experts_implementation))
    inputs = inputs_of(model, experts, case)
    with torch.inference_mode():
        error, own_error = errors(list(experts.values())[-1], inputs[-1])
    if not error <= WRONG * own_error:
        raise IncorrectOutput(f"the experts are {error:.2g} off, PyTorch's own {own_error:.2g}")
    shared = {
        "status": "ok", "reason": "", "rel_error": error, "torch_rel_error": own_error,
        "transformers": transformers.__version__, "model_bytes": sum(each.nbytes for each in model.parameters()),
        "config": EndToEnd().planned_config(implementation, case),
    }  # fmt: skip
    rows = []
    for launch in launches:
        if launch == "graph" and (implementation.host_sync or not bench.timed):
            reason = implementation.host_sync or "a CUDA graph needs an NVIDIA GPU"
            rows.append(EndToEnd().failed(launch, "unsupported", reason))
            continue
        row: dict[str, Any] = {"launch": launch, "timing_method": "none", **shared}
        steps = Steps(bench.settings, bench.timed)
        if bench.timed:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        generate(model, case.tokens, launch, steps, case.seed)
        if bench.timed:
            times = sorted(steps.times_us())
            middle = quantile(times, 0.5)
            row["timing_method"] = "loop"
            row |= {"peak_bytes": torch.cuda.max_memory_allocated(), "p50_us": middle, "p20_us": quantile(times, 0.2),
                    "p80_us": quantile(times, 0.8), "samples": len(times),
                    "tokens_per_s": 1e6 * case.tokens / middle}  # fmt: skip
            calls = [_bind(module, arguments) for module, arguments in zip(experts.values(), inputs)]
            with torch.inference_mode():
                alone = len(calls) * time_calls(calls, launch, bench.settings).p50_us
            row |= {"experts_us": alone, "experts_share": alone / middle}
        rows.append(row)
    return rows


def known_to_transformers(name: str) -> str:
    """The name under which transformers decodes with these experts, registered if it is ours."""
    from transformers.integrations import moe

    if name == "grouped_mm":
        moe.ExpertsInterface.register(KEPT_GROUPED, moe.grouped_mm_experts_forward)
        return KEPT_GROUPED
    if name not in PEERS:
        from tritonmoe_bench.kernels.integrations import hf

        hf.register()
    return name


def inputs_of(model: Any, experts: dict[int, Any], case: Case) -> list[tuple[torch.Tensor, ...]]:
    """What each of the experts is called with in a decode step: x, ids and weights."""
    from ..workload.settings import TimingSettings
    from .decoding import Steps, generate

    seen: dict[int, tuple[torch.Tensor, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, layer=layer: seen.update({layer: given}))
        for layer, module in experts.items()
    ]
    try:
        generate(model, case.tokens, "eager", Steps(TimingSettings(), False), case.seed)
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(each.clone() for each in seen[layer]) for layer in experts]


def errors(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Relative errors of an experts module as it is set, and of its eager form, against its eager form in float32."""
    from ..workload.reference import relative_error

    def eager(made: Any, *given: torch.Tensor) -> torch.Tensor:
        made.config = copy.copy(module.config)
        made.config._experts_implementation = "eager"
        return made(*given)

    x, ids, weights = arguments
    y = module(x, ids, weights)
    exact = eager(copy.deepcopy(module).float(), x.float(), ids, weights.float())
    return relative_error(y, exact), relative_error(eager(copy.copy(module), x, ids, weights), exact)


def _bind(module: Any, arguments: tuple[torch.Tensor, ...]) -> Any:
    return lambda: module(*arguments)
