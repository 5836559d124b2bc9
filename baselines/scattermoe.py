"""ScatterMoE (arXiv 2403.08245): its `parallel_linear`, a grouped GEMM that gathers and scatters rows in the kernel.

The adapter calls it as ScatterMoE's own `GLUMLP` does, without the count of each expert: `flatten_sort_count` finds
the counts by torch.bincount, which waits for the GPU, and only a backward pass reads them. The kernel has one tile of
128 rows sorted by expert. It walks over every expert between the first and the last of the tile, with rows or without.
ScatterMoE is not on PyPI: TRITONMOE_SCATTERMOE_PATH names a checkout.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Weights, unavailable

from .install import checkouts
from .install.installed import first_line
from .parts.in_build import run_once

if TYPE_CHECKING:
    import torch

CHECKOUT = checkouts.Checkout("scattermoe", "scattermoe", "shawntan/scattermoe", "scattermoe")
PARAMETERS = ("inputs", "expert_weights", "k", "sorted_expert_idxs", "sorted_scattered_idxs", "expert_offsets",
              "expert_biases", "gates", "grouped_in", "grouped_out")  # fmt: skip
"""Of `parallel_linear` since ScatterMoE dropped its table of padded blocks."""


class Scattermoe(checkouts.CheckoutSystem):
    name = "scattermoe"
    checkout = CHECKOUT
    family = "research"
    source = f"github.com/{CHECKOUT.repository}: scattermoe.parallel_experts.parallel_linear"

    def config(self, case: Case) -> str:
        return "BLOCK_M=128 BLOCK_N=128 BLOCK_K=32 num_stages=4 num_warps=4"

    def check(self, case: Case) -> Check:
        problem = _problem()
        return unavailable(problem) if problem else OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from scattermoe.parallel_experts import parallel_linear
        from torch.nn.functional import linear, silu

        from tritonmoe_bench.experiments.workload.reference import route

        router, bias = weights.router(), weights.correction_bias()
        gate_up = weights.gate_up("nk").transpose(1, 2)  # [E, hidden, 2 * ffn], the reduced dimension contiguous
        down = weights.down("nk").transpose(1, 2)  # [E, ffn, hidden], the same
        top_k, gating = case.top_k, case.gate

        def forward(x: torch.Tensor) -> torch.Tensor:
            scores, experts = route(linear(x, router), top_k, gating, bias)
            by_expert, slots = torch.sort(experts.flatten())
            hidden = parallel_linear(x, gate_up, top_k, by_expert, slots, None, grouped_out=True)
            gate, up = hidden.chunk(2, dim=-1)
            return parallel_linear(
                silu(gate) * up, down, 1, by_expert, slots, None, grouped_in=True, gates=scores.to(x.dtype)
            )

        return run_once(forward, case, weights)


@functools.cache
def _problem() -> str:
    """Why ScatterMoE cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    how = CHECKOUT.how_to_get()
    try:
        from scattermoe.parallel_experts import parallel_linear
    except Exception as error:  # its kernels ask Triton for a GPU when they are imported
        return f"{first_line(error)}: {how}"
    if tuple(inspect.signature(parallel_linear).parameters) != PARAMETERS:
        return f"this scattermoe has another parallel_linear than {CHECKOUT.repository} has today: {how}"
    if not torch.cuda.is_available():
        return "ScatterMoE runs Triton kernels: it needs an NVIDIA GPU"
    return ""
