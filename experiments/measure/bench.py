"""What the measurements share: weights and references of a worker, the correctness gate, failures as rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..implementation.contract import Implementation
from ..table import columns
from ..workload.case import Case
from ..workload.reference import moe_forward, relative_error
from ..workload.routing import TORCH_DTYPE, draw_routing
from ..workload.weights import Weights
from .timing import TimingSettings

if TYPE_CHECKING:
    pass


TOLERANCE = 2.0
"""An output may be this many times as far from the float32 reference as PyTorch's own 16-bit computation."""


class IncorrectOutput(Exception):
    """An output failed the correctness gate."""


@dataclass
class Bench:
    """What the cases of one worker share: device, settings, the weights of the current shape, cached references."""

    device: torch.device
    settings: TimingSettings
    reference_folder: Path
    l2_bytes: int = 0
    _sets: dict[int, Weights] = field(default_factory=dict)
    _key: tuple = ()

    @property
    def timed(self) -> bool:
        return self.device.type == "cuda"

    def weights(self, case: Case, count: int) -> list[Weights]:
        """`count` weight sets of the case; sets of an earlier shape, or beyond the count, are dropped."""
        if case.weights_key != self._key:
            self._sets, self._key = {}, case.weights_key
        for index in [index for index in self._sets if index >= count]:
            del self._sets[index]
        for index in range(count):
            kept = self._sets.setdefault(index, Weights(case, self.device, index))
            kept.case = case
        return list(self._sets.values())

    def release(self) -> None:
        """Drops all weights, to give their memory back after a failure."""
        self._sets.clear()

    def reference(self, case: Case, x: torch.Tensor, weights: Weights) -> tuple[torch.Tensor, float]:
        """(float32 output, relative error of PyTorch's own 16-bit computation); made once for all workers of a run."""
        path = self.reference_folder / f"{case.case_hash}-{self.device.type}.pt"
        if path.exists():
            kept = torch.load(path, map_location=self.device)
            return kept["y"], kept["torch_rel_error"]
        arguments = (x, weights.router(), weights.expert, case.top_k, case.gate, weights.correction_bias())
        y = moe_forward(*arguments)
        error = relative_error(moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype]), y)
        partial = path.with_suffix(".partial")
        torch.save({"y": y.cpu(), "torch_rel_error": error}, partial)
        partial.replace(path)
        return y, error


def facts(case: Case) -> dict[str, Any]:
    """The columns that follow from the case alone, its realised routing included."""
    routing = draw_routing(case)
    return {
        "active_experts": routing.active_experts,
        "max_expert_load": routing.max_expert_load,
        "min_bytes": case.min_bytes(routing.active_experts),
        "flops": case.flops,
    }


def _gate(reference: torch.Tensor, torch_error: float) -> Callable[[object], float]:
    allowed = TOLERANCE * torch_error

    def verify(y: object) -> float:
        if not isinstance(y, torch.Tensor) or y.shape != reference.shape:
            raise IncorrectOutput(f"output has shape {tuple(getattr(y, 'shape', ()))}, not {tuple(reference.shape)}")
        error = relative_error(y, reference)
        if not math.isfinite(error) or error > allowed:
            raise IncorrectOutput(
                f"relative error {error:.3g} against the float32 reference; "
                f"allowed is {allowed:.3g}, {TOLERANCE:g} x PyTorch's own in 16 bits"
            )
        return error

    return verify


def _bind(forward: Callable, x: torch.Tensor) -> Callable[[], object]:
    return lambda: forward(x)


def make_bench(job: dict) -> Bench:
    """Device, settings and folder of references of a job; without a GPU kernels run in Triton's interpreter."""
    import torch

    pass
    from .timing import TimingSettings

    cuda = job["environment"]["device_uuid"] != ""
    if not cuda:
        from ..interpreter import repair

        repair.install()
    return Bench(
        torch.device("cuda" if cuda else "cpu"),
        TimingSettings(**job["timing"]),
        Path(job["reference_folder"]),
        job["environment"]["l2_bytes"],
    )


def case_rows(
    take, kind: str, implementation: Implementation, case: Case, modes: list[str], bench: Bench
) -> list[dict[str, Any]]:
    """Rows of one case, whatever happens: a failure is a status with its reason."""
    import torch

    pass

    def failed(status: str, reason: str) -> list[dict[str, Any]]:
        return [columns.failed(kind, mode, status, reason) for mode in modes]

    if implementation.needs_gpu and not bench.timed:
        return failed("unavailable", "needs an NVIDIA GPU, and this machine has none")
    check = implementation.answer(case)
    if check.status.value != "ok":
        return failed(check.status.value, check.reason)
    try:
        return take(implementation, case, modes, bench)
    except torch.cuda.OutOfMemoryError as error:
        failure = ("oom", str(error))
    except IncorrectOutput as error:
        failure = ("incorrect", str(error))
    except Exception as error:  # the sweep goes on, and the row says what happened
        failure = ("error", f"{type(error).__name__}: {error}")
    rows = failed(*failure)
    if bench.timed:
        bench.release()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()  # a fault of the device itself ends this process here, and the parent says so
    return rows
