"""What the adapters of vLLM and SGLang share: the two have one origin, and so the same gatings, tables and limits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, unavailable, unsupported
from tritonmoe_bench.kernels.gating import Gating

from .in_build import ConfiguredInBuild

if TYPE_CHECKING:
    import torch

Tile = dict[str, int]
Route = Callable[["torch.Tensor"], "tuple[torch.Tensor, torch.Tensor]"]
"""x -> (float32 weights, int32 experts), both [tokens, top_k]."""
OF_ROUTER = ("router_bias", "float32_router")
"""Facts of a native layer that its experts have no part in."""
ROUTER_TOKENS = 16
"""Up to so many tokens both have a router GEMM of their own, for DeepSeek-V3's gate, in bf16 and from Hopper on."""


class ServingSystem(ConfiguredInBuild):
    """A fused MoE of a serving system. label: the system's name in a reason."""

    label: ClassVar[str]

    @abstractmethod
    def problem(self) -> str:
        """Why the system cannot run in this process, with the command that would mend it; empty if it can."""

    def check(self, case: Case) -> Check:
        problem = self.problem()
        if problem:
            return unavailable(problem)
        gate = case.gate
        plain = gate == Gating(gate.scoring, gate.renormalize)
        if not plain and not (gate.scoring == "sigmoid" and gate.correction_bias):
            return unsupported(f"gating={case.gating}: {self.label} has softmax or sigmoid over all experts, "
                               "renormalised or not, and sigmoid with a correction bias, in groups or not")  # fmt: skip
        if case.quant != "none" and set(case.facts.needs) - {*OF_ROUTER}:
            return unsupported(
                f"quant={case.quant}: run here with SwiGLU experts alone, without biases or a shared expert"
            )
        return self.check_shape(case)

    def check_shape(self, case: Case) -> Check:
        """`unsupported` for a shape that the row is not about."""
        return OK


def router_gemm_serves(case: Case, capability: tuple[int, int]) -> bool:
    """Whether batch, dtype, layer and GPU are those of the router GEMM; each system has a condition on shapes."""
    if case.facts.float32_router or case.facts.router_bias:
        return False
    return case.tokens <= ROUTER_TOKENS and case.dtype == "bf16" and capability >= (9, 0)


def origin(batch_sizes: Iterable[int] | None, table: str, case: Case) -> str:
    """Where a tile comes from, in words. batch_sizes: of the table that is shipped for the shape, if there is one."""
    if not batch_sizes:
        return "default heuristic"
    return f"{table} at M={min(batch_sizes, key=lambda tokens: abs(tokens - case.tokens))}"


def words(tile: Tile) -> str:
    return " ".join(f"{name}={value}" for name, value in tile.items())
