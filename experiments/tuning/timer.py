"""Times candidates of `make tune` on this machine's GPU, checks what they compute, and makes a row of each timing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from tritonmoe_bench.kernels.fast.layer import fast_moe
from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FastTile, FewTile

from ..measure.gate import IncorrectOutput, check_output
from ..measure.timing import time_calls
from ..workload.case import Case
from ..workload.reference import quantize_fp8, relative_error
from ..workload.routing import Routing
from ..workload.settings import TimingSettings
from .layer import (
    Batch,
    Layer,
    activation_bits,
    draw_batches,
    forward_reference,
    plain,
    stage_call,
    stage_reference,
)
from .measure import Tune
from .space import Candidate

Check = Callable[[object], float]
AnyTile: TypeAlias = "FastTile | FewTile | AnyTiles"
SETTINGS = TimingSettings(samples=12, min_samples=4, budget_ms=15.0, min_replay_us=1000.0)
"""Short: a choice is settled by turns, not by one long sample."""


LOST = "the GPU's context broke: "
"""How the reason of a row begins whose kernel has left the GPU unusable to its process."""


class DeviceLost(Exception):
    """A kernel has left the GPU unusable to this process; the message names it."""


@dataclass
class GpuTimer:
    """The `Timer` of one layer and number of tokens. emit: takes a case and the columns of a row that are known here.

    layers: weights that the routings take turns on; refused: the reasons not to run what does not compile or has broken
    the GPU's context before, by stage and config.
    """

    case: Case
    layers: Sequence[Layer]
    l2_bytes: int
    refused: Mapping[tuple[str, str], str]
    emit: Callable[[Case, dict[str, Any]], None]
    settings: TimingSettings = field(default_factory=lambda: SETTINGS)
    _drawn: dict[float, tuple[list[Routing], list[Batch]]] = field(default_factory=dict)
    _checks: dict[tuple[str, str, float], tuple[Check, float]] = field(default_factory=dict)

    def stage(self, candidate: Candidate, skew: float) -> float | None:
        """us of one run of a stage, None if it is wrong or does not run."""
        key = {"stage": candidate.stage, "config": str(candidate), "round": 0}
        return self._time(candidate.tile, skew, key, functools.partial(stage_call, candidate))

    def forward(self, tiles: AnyTiles, skew: float, turn: int) -> float | None:
        """us of a whole forward, None if it is wrong or does not run."""
        key = {"stage": "forward", "config": str(tiles), "round": turn}

        def make(batch: Batch) -> Callable[[], torch.Tensor]:
            weights = (batch.layer.router, batch.layer.gate_up, batch.layer.down)
            return lambda: fast_moe(batch.x, *weights, batch.case.top_k, batch.case.gate, tiles=tiles)

        return self._time(tiles, skew, key, make)

    def _time(
        self, tile: AnyTile, skew: float, key: dict[str, Any], make: Callable[[Batch], Callable[[], object]]
    ) -> float | None:
        stage = key["stage"]
        if (stage, key["config"]) in self.refused:
            reason = self.refused[stage, key["config"]]
            self._emit(skew, Tune().failed("graph", "unsupported", reason) | key)
            return None
        batches = self._batches(skew)[1]
        check, torch_error = self._check(stage, tile, skew)
        cold = len(self.layers) * self.case.num_experts * self.case.expert_bytes / 3 >= self._cold_bytes
        row: dict[str, Any] = {"torch_rel_error": torch_error, "routings": len(batches) if cold else 1}

        def verify(output: object) -> None:
            row["rel_error"] = check(output)

        try:
            calls = [make(batch) for batch in batches]
            timing = time_calls(calls, "graph", self.settings, flush=not cold, verify=verify)
        except IncorrectOutput as error:
            failure = ("incorrect", str(error))
        except torch.cuda.OutOfMemoryError as error:
            failure = ("oom", str(error))
        except Exception as error:  # one tile less, and the row says why
            failure = ("error", f"{type(error).__name__}: {error}")
        else:
            row |= {
                "launch": "graph", "timing_method": timing.method, "status": "ok", "reason": "",
                "p50_us": timing.p50_us, "p20_us": timing.p20_us, "p80_us": timing.p80_us, "samples": timing.samples,
            }  # fmt: skip
            self._emit(skew, key | row)
            return timing.p50_us
        self._emit(skew, Tune().failed("graph", *failure) | key)
        self._recover(skew, key)
        return None

    @property
    def _cold_bytes(self) -> float:
        return self.settings.cold_factor * self.l2_bytes

    def _recover(self, skew: float, key: dict[str, Any]) -> None:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception as error:
            self._emit(skew, Tune().failed("graph", "error", f"{LOST}{error}") | key)
            raise DeviceLost(f"{key['stage']} {key['config']}: {LOST}{error}".splitlines()[0]) from None

    def _emit(self, skew: float, row: dict[str, Any]) -> None:
        self.emit(replace(self.case, skew=skew), row)

    def _batches(self, skew: float) -> tuple[list[Routing], list[Batch]]:
        if skew not in self._drawn:
            self._drawn[skew] = draw_batches(replace(self.case, skew=skew), self.layers, self._cold_bytes)
        return self._drawn[skew]

    def _check(self, stage: str, tile: AnyTile, skew: float) -> tuple[Check, float]:
        """(raises IncorrectOutput or gives the relative error of the first batch's output, the error of PyTorch's own
        computation with the bits that the tile computes with)."""
        routings, batches = self._batches(skew)
        batch, bits = batches[0], activation_bits(batches[0], tile)
        if (stage, bits, skew) not in self._checks:
            make = functools.partial(stage_reference, stage, batch, routings[0])
            if stage == "forward":
                make = functools.partial(forward_reference, batch)
            exact = make()
            own = make(quantize=quantize_fp8) if bits == "a8" else make(dtype=batch.x.dtype)
            torch_error = relative_error(own, exact)
            check = functools.partial(check_output, reference=exact, torch_error=torch_error, bits=bits)
            self._checks[stage, bits, skew] = (lambda output: check(plain(stage, batch, output)), torch_error)
        return self._checks[stage, bits, skew]
