"""The code of the TritonMoE paper (arXiv 2605.23911) itself: `fused_moe_forward` out of its package `triton_kernels`.

It is not on PyPI, where another package has that name, so it runs in a process of its own: TRITONMOE_TRITONMOE_PATH
names a checkout. It takes gate and up weights apart. Its softmax gating does not renormalise, its sigmoid gating does.
Its kernels tune themselves by (N, K) alone; here they are tuned anew for each batch size.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Weights,
    unavailable,
    unsupported,
)
from tritonmoe_bench.kernels.gating import Gating

from .install import checkouts
from .install.installed import first_line
from .parts.in_build import run_once

if TYPE_CHECKING:
    import torch

CHECKOUT = checkouts.Checkout("tritonmoe", "triton_kernels/moe", "bassrehab/triton-kernels", "triton-kernels")
PARAMETERS = ("hidden_states", "router_weight", "w_gate", "w_up", "w_down", "num_experts", "top_k", "gating")
GATINGS = {Gating(): "softmax", Gating("sigmoid", renormalize=True): "sigmoid"}


class Tritonmoe(checkouts.CheckoutSystem):
    name = "tritonmoe"
    checkout = CHECKOUT
    family = "research"
    source = f"github.com/{CHECKOUT.repository}: triton_kernels.moe.fused_moe_forward"
    revision = 2  # 1: tuned for the first batch size of the process alone
    host_sync = (
        "_build_block_schedule copies the expert offsets to the host, once a grouped GEMM, and builds the list of "
        "blocks in a Python loop"
    )

    def __init__(self) -> None:
        self._tuned_for: tuple = ()

    def config(self, case: Case) -> str:
        return "BLOCK_M=64, BLOCK_N and BLOCK_K autotuned for this batch size"

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.gate not in GATINGS:
            return unsupported(f"gating={case.gating}: the paper's router has softmax, not renormalised, and sigmoid, "
                               "renormalised")  # fmt: skip
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from triton_kernels.moe import fused_moe_forward

        router = weights.router()
        gate, up, down = weights.gate("nk"), weights.up("nk"), weights.down("nk")
        num_experts, top_k, gating = case.num_experts, case.top_k, GATINGS[case.gate]

        def forward(x: torch.Tensor) -> torch.Tensor:
            return fused_moe_forward(x, router, gate, up, down, num_experts, top_k, gating=gating)[0]

        if self._tuned_for != (case.weights_key, case.tokens):
            _forget_tiles()
            self._tuned_for = (case.weights_key, case.tokens)
        return run_once(forward, case, weights)  # tunes its kernels


def _forget_tiles() -> None:
    """Has the paper's kernels tuned anew: they remember a tile by (N, K), whatever the batch size was."""
    from triton.runtime.autotuner import Autotuner

    modules = [module for name, module in sys.modules.items() if name.startswith("triton_kernels.moe")]
    for value in (value for module in modules for value in vars(module).values()):
        if isinstance(value, Autotuner):
            value.cache.clear()


@functools.cache
def _problem() -> str:
    """Why the paper's code cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    how = CHECKOUT.how_to_get()
    try:
        from triton_kernels.moe import fused_moe_forward
    except Exception as error:  # OpenAI's package of that name has no moe; the paper's asks Triton for a GPU
        return f"{first_line(error)}: {how}"
    if tuple(inspect.signature(fused_moe_forward).parameters) != PARAMETERS:
        return f"this triton_kernels has another fused_moe_forward than {CHECKOUT.repository}: {how}"
    if not torch.cuda.is_available():
        return "the paper's code runs Triton kernels: it needs a GPU"
    return ""
