"""What a system must offer to be measured: the one contract of our pipelines and of every baseline, whole in this file.

To add a system, put one file into baselines/ that defines a subclass of `Implementation`; the registry finds it. Its
import line is

    from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Implementation, Weights

and `unavailable` and `unsupported` where it needs them. Import the system itself, and torch, inside `check`, `version`
and `build` only: this module and the adapter must import anywhere.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from ..workload.case import QUANTS as QUANTS
from ..workload.case import Case as Case  # what an adapter is asked for
from ..workload.layer import NEEDS as NEEDS

if TYPE_CHECKING:
    import torch

    from tritonmoe_bench.kernels.formats import Packed

    from ..workload.reference import Parts

Forward = Callable[["torch.Tensor"], "torch.Tensor"]
Layout = Literal["nk", "kn"]
"""Which dimension of a weight matrix comes last: ``nk`` the reduced one, as nn.Linear has it, ``kn`` the other one."""


class Status(str, enum.Enum):
    """Status of a row. Only `OK` carries timings."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    OOM = "oom"
    INCORRECT = "incorrect"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Check:
    """Answer of `Implementation.check`; every status but ok needs a reason."""

    status: Status = Status.OK
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.status is Status.OK) == bool(self.reason):
            raise ValueError("a reason is given exactly when the status is not ok")


OK = Check()


def unavailable(reason: str) -> Check:
    """Not installed, or the wrong GPU. Name the command that would install it."""
    return Check(Status.UNAVAILABLE, reason)


def unsupported(reason: str) -> Check:
    """Installed, but cannot do this dtype, shape or gating."""
    return Check(Status.UNSUPPORTED, reason)


class Weights(Protocol):
    """The weights of a case's layer on the device, as `build` gets them, in the case's dtype.

    Each stacked tensor is made when it is first asked for and kept until `release`. DeepSeek-V3's layer takes 22.5 GB,
    so ask for one layout only and do not copy it. `set_index` numbers independent sets of weights of the same case.
    """

    case: Case
    device: torch.device
    dtype: torch.dtype
    set_index: int

    def router(self) -> torch.Tensor:
        """[num_experts, hidden_dim], in the case's dtype, or float32 for a layer with a float32 router."""

    def router_bias(self) -> torch.Tensor | None:
        """[num_experts] in the case's dtype, added to the logits; None for a router without."""

    def correction_bias(self) -> torch.Tensor | None:
        """float32 [num_experts], added to the scores when experts are chosen; None for gatings without one."""

    def expert(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Freshly made (gate [ffn, hidden], up [ffn, hidden], down [hidden, ffn]) of one expert, in the case's dtype;
        packed weights unpacked, in float32."""

    def parts(self) -> Parts:
        """What the native layer has beside router and experts, as `moe_forward` of workload/reference.py takes it."""

    def gate_up_bias(self) -> torch.Tensor | None:
        """[num_experts, 2 * ffn], added to gate and up; None for experts without."""

    def down_bias(self) -> torch.Tensor | None:
        """[num_experts, hidden], added to down's output before the routing weight; None for experts without."""

    def shared_gate_up(self) -> torch.Tensor:
        """[2 * shared_ffn, hidden] of the shared expert, gate rows then up rows."""

    def shared_down(self) -> torch.Tensor:
        """[hidden, shared_ffn] of the shared expert."""

    def shared_router(self) -> torch.Tensor | None:
        """[1, hidden], whose product with x, through a sigmoid, multiplies the shared expert's output; None if none."""

    def packed_gate_up(self, with_shared: bool = False) -> Packed:
        """Matrices [2 * ffn, hidden] of all experts in the case's weight format, gate rows then up rows. with_shared:
        the shared expert stands behind the others, as one more, or as many as it is wide; so below."""

    def packed_down(self, with_shared: bool = False) -> Packed:
        """Matrices [hidden, ffn] of all experts in the case's weight format."""

    def gate(self, layout: Layout = "nk") -> torch.Tensor:
        """[num_experts, ffn, hidden], or [num_experts, hidden, ffn] for ``kn``."""

    def up(self, layout: Layout = "nk") -> torch.Tensor:
        """[num_experts, ffn, hidden], or [num_experts, hidden, ffn] for ``kn``."""

    def gate_up(self, layout: Layout = "nk", with_shared: bool = False) -> torch.Tensor:
        """[num_experts, 2 * ffn, hidden], gate rows then up rows, or [num_experts, hidden, 2 * ffn] for ``kn``."""

    def down(self, layout: Layout = "nk", with_shared: bool = False) -> torch.Tensor:
        """[num_experts, hidden, ffn], or [num_experts, ffn, hidden] for ``kn``."""

    def flat(self) -> torch.Tensor:
        """int32 [num_experts + shared, expert_bytes / 4] of random words, as many bytes as the layer's, for `stream`:
        the rows behind the experts stand for the shared one."""

    def release(self) -> None:
        """Drops every tensor made so far."""


class Implementation(ABC):
    """One system that runs a whole MoE layer: router GEMM, scoring, top-k, dispatch, expert GEMMs, weighted combine.

    Class attributes:
    name: as in CSVs, configs and figures; family: groups systems in figures; source: where the system comes from;
    host_sync: empty if `forward` never waits for the GPU, so that a CUDA graph can hold it, else why it cannot;
    revision: a number to raise when this adapter, or a kernel of ours behind it, may run at another speed than before:
    rows of an older revision are measured again; revisions_up_to: by number of tokens, the revision of rows of up to so
    many, which a path of its own serves; quants: the weight formats that it computes with;
    facts: the parts of a model's own layer that it computes, names of `NEEDS` in workload/layer.py;
    experts_implementation: the name by which transformers has its experts, empty if it has not;
    needs_gpu: whether it cannot run without an NVIDIA GPU;
    computes_layer: whether its output is the layer's, to be checked against the reference (false for the streaming
    limit alone).
    """

    name: ClassVar[str]
    family: ClassVar[str]
    source: ClassVar[str]
    host_sync: ClassVar[str] = ""
    quants: ClassVar[tuple[str, ...]] = ("none",)
    facts: ClassVar[tuple[str, ...]] = ()
    experts_implementation: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    revisions_up_to: ClassVar[Mapping[int, int]] = MappingProxyType({})
    needs_gpu: ClassVar[bool] = True
    computes_layer: ClassVar[bool] = True

    @abstractmethod
    def version(self) -> str:
        """Version of the system, empty if it is not installed. Imports nothing of it: one process asks many systems."""

    @abstractmethod
    def check(self, case: Case) -> Check:
        """Whether `build` can be asked for this case on this machine."""

    def revision_of(self, case: Case) -> int:
        """The revision of the case's rows."""
        return next((self.revisions_up_to[most] for most in sorted(self.revisions_up_to) if case.tokens <= most),
                    self.revision)  # fmt: skip

    def answer(self, case: Case) -> Check:
        """`check`, but for a weight format that is not among `quants`, and parts of a layer not among `facts`."""
        if case.quant not in self.quants:
            return unsupported(f"quant={case.quant}: it computes with {', '.join(self.quants)}")
        lacking = [NEEDS[name] for name in case.facts.needs if name not in self.facts]
        if lacking:
            return unsupported(f"layer=native: {case.model} needs {' and '.join(lacking)}")
        return self.check(case)

    @abstractmethod
    def build(self, case: Case, weights: Weights) -> Forward:
        """Everything that is not timed: weight layout, tuning, warm-up of caches. Returns forward(x) -> y.

        forward takes x [tokens, hidden_dim] in the case's dtype and returns y, the same; it may reuse its output
        buffer from call to call. Called once per case and weight set; ask `weights` for a stacked tensor rather than
        copying one.
        """

    def config(self, case: Case) -> str:
        """The tiles, backend or table chosen for a case, in words for the row."""
        return ""

    def planned_config(self, case: Case) -> str | None:
        """The `config` that `build` will choose, if it is known before: a row with another one is measured again.
        Imports nothing of the system."""
        return None

    def activations(self, case: Case) -> str:
        """``a8`` if the rows that enter the expert GEMMs are quantised to 8 bits, else ``a16``."""
        return "a16"

    def search_path(self) -> list[Path]:
        """Folders put first on sys.path in the worker process, before anything is imported."""
        return []

    def stages(self, case: Case, weights: Weights, x: torch.Tensor) -> list[tuple[str, Callable[[], object]]]:
        """The forward cut into its stages, (name, thunk) in order, each with its inputs prepared; empty if not."""
        return []
