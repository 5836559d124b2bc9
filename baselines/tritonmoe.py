"""The code of the TritonMoE paper (arXiv 2605.23911) itself: its package `triton_kernels`, fused and unfused.

`tritonmoe` is its `fused_moe_forward`. `tritonmoe_unfused` calls its router, permutation, three grouped GEMMs and
weighted sum as its own benchmark does. It is not on PyPI, where another package has that name, so it runs in a process
of its own: TRITONMOE_TRITONMOE_PATH names a checkout. It takes gate and up weights apart. Its softmax gating does not
renormalise, its sigmoid gating does. It rounds to fp16 in between whatever the dtype is, and returns the dtype of x.
Its kernels tune themselves by (N, K) alone; here they are tuned anew for each batch size.
"""

from __future__ import annotations

import functools
import importlib
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
PARAMETERS = {
    "fused_moe_forward": (
        "hidden_states", "router_weight", "w_gate", "w_up", "w_down", "num_experts", "top_k", "gating",
    ),
    "moe_router": ("hidden_states", "router_weight", "top_k", "gating", "router_bias"),
    "permute_tokens": ("hidden_states", "top_k_indices", "num_experts"),
    "expert_ffn_triton": ("permuted_tokens", "w_gate", "w_up", "w_down", "expert_offsets", "num_experts"),
    "unpermute_tokens": ("expert_outputs", "top_k_weights", "restore_idx", "num_tokens", "top_k"),
}  # fmt: skip
"""Of the functions that are called here."""
GATINGS = {Gating(): "softmax", Gating("sigmoid", renormalize=True): "sigmoid"}


class Tritonmoe(checkouts.CheckoutSystem):
    name = "tritonmoe"
    checkout = CHECKOUT
    family = "research"
    source = f"github.com/{CHECKOUT.repository}: triton_kernels.moe.fused_moe_forward"
    revision = 2  # 1: tuned for the first batch size of the process alone
    host_sync = (
        "_build_block_schedule copies the expert offsets to the host, once for gate and up and once for down, and "
        "builds the list of blocks in a Python loop"
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
        forward = self.forward(case, weights)
        if self._tuned_for != (case.weights_key, case.tokens):
            _forget_tiles()
            self._tuned_for = (case.weights_key, case.tokens)
        return run_once(forward, case, weights)  # tunes its kernels

    def forward(self, case: Case, weights: Weights) -> Forward:
        """The layer over these weights."""
        from triton_kernels.moe import fused_moe_forward

        router = weights.router()
        gate, up, down = weights.gate("nk"), weights.up("nk"), weights.down("nk")
        num_experts, top_k, gating = case.num_experts, case.top_k, GATINGS[case.gate]

        def forward(x: torch.Tensor) -> torch.Tensor:
            return fused_moe_forward(x, router, gate, up, down, num_experts, top_k, gating=gating)[0]

        return forward


class TritonmoeUnfused(Tritonmoe):
    """The paper's own code with gate, up and SiLU apart."""

    name = "tritonmoe_unfused"
    source = f"github.com/{CHECKOUT.repository}: triton_kernels.moe.expert_ffn_triton, as in bench_moe_dispatch.py"
    host_sync = (
        "_build_block_schedule copies the expert offsets to the host, once a grouped GEMM, and builds the list of "
        "blocks in a Python loop"
    )
    revision = 1

    def forward(self, case: Case, weights: Weights) -> Forward:
        from triton_kernels.moe import expert_ffn_triton, moe_router, permute_tokens, unpermute_tokens

        router = weights.router()
        gate, up, down = weights.gate("nk"), weights.up("nk"), weights.down("nk")
        num_experts, top_k, gating = case.num_experts, case.top_k, GATINGS[case.gate]

        def forward(x: torch.Tensor) -> torch.Tensor:
            experts, scores, _ = moe_router(x, router, top_k, gating)
            rows, offsets, _, restore = permute_tokens(x, experts, num_experts)
            y = expert_ffn_triton(rows, gate, up, down, offsets, num_experts)
            return unpermute_tokens(y, scores, restore, x.shape[0], top_k)

        return forward


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
        moe = importlib.import_module("triton_kernels.moe")
    except Exception as error:  # OpenAI's package of that name has no moe; the paper's asks Triton for a GPU
        return f"{first_line(error)}: {how}"
    for name, parameters in PARAMETERS.items():
        function = getattr(moe, name, None)
        if function is None or tuple(inspect.signature(function).parameters) != parameters:
            return f"this triton_kernels has another {name} than {CHECKOUT.repository}: {how}"
    if not torch.cuda.is_available():
        return "the paper's code runs Triton kernels: it needs a GPU"
    return ""
