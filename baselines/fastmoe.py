"""FastMoE (arXiv 2103.13262): its layer `FMoE` with SwiGLU experts, a loop of cuBLAS calls over experts on 16 streams.

FasterMoE (PPoPP 2022) is the same package. Its shadowing of experts and its topology-aware gate act between GPUs only,
so on one GPU its path is this one, and the row says so. `cublas_streams` is the technique in PyTorch, and runs without
the package. FastMoE is not on PyPI, and its CUDA sources are compiled when it is installed: TRITONMOE_FASTMOE_PATH
names a checkout that was built in place.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Weights,
    unavailable,
    unsupported,
)

from .install import checkouts
from .install.installed import first_line
from .parts.in_build import run_once

if TYPE_CHECKING:
    import torch

CHECKOUT = checkouts.Checkout(
    "fastmoe", "fmoe", "laekov/fastmoe", "fastmoe",
    build=" && (cd fastmoe && pip install dm-tree && USE_NCCL=0 python setup.py build_ext --inplace)",
)  # fmt: skip


class FastMoe(checkouts.CheckoutSystem):
    name = "fastmoe"
    checkout = CHECKOUT
    family = "training"
    source = f"github.com/{CHECKOUT.repository}: fmoe.layers.FMoE, fmoe.linear.MOELinear"
    host_sync = "prepare_forward: lec_cum[-1].item() and .cpu() of the counts, with which cuBLAS is called in a loop"

    def config(self, case: Case) -> str:
        return (
            "fused experts (MOELinear), routing by PyTorch: its own gates have softmax after top-k only; "
            "FasterMoE's path on one GPU is this one: its shadowing and topology gate act between GPUs"
        )

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        refusal = _refusal(case.dtype)
        return unsupported(f"FastMoE's linear_forward does not take {case.dtype}: {refusal}") if refusal else OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        layer = _layer(case, weights)

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return layer(x)

        return run_once(forward, case, weights)


def _layer(case: Case, weights: Weights) -> torch.nn.Module:
    """FMoE on one worker with our gate and our experts, their weights the workload's own tensors."""
    import torch
    from fmoe.layers import FMoE
    from fmoe.linear import MOELinear

    from tritonmoe_bench.experiments.workload.reference import route

    from .parts.silu_gate import silu_gate

    router, bias = weights.router(), weights.correction_bias()
    gate_up, down = weights.gate_up("nk"), weights.down("nk")

    class Gate(torch.nn.Module):
        def __init__(self, *sizes: int) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores, experts = route(x @ router.T, case.top_k, case.gate, bias)
            return experts.contiguous(), scores.to(x.dtype)

    class Experts(torch.nn.Module):
        """As FMoELinear, whose own constructor would fill float32 parameters on the CPU."""

        def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            both = MOELinear.apply(rows, counts, gate_up, None)
            hidden = silu_gate(both, rows.new_empty((rows.shape[0], case.ffn_dim)))
            return MOELinear.apply(hidden, counts, down, None)

    layer = FMoE(num_expert=case.num_experts, d_model=case.hidden_dim, world_size=1, top_k=case.top_k, gate=Gate)
    layer.experts = Experts()
    return layer.eval()


@functools.cache
def _problem() -> str:
    """Why FastMoE cannot run in this process, with the command that would mend it; empty if it can."""
    try:
        import fmoe_cuda  # noqa: F401
        from fmoe.layers import FMoE  # noqa: F401
        from fmoe.linear import MOELinear  # noqa: F401
    except Exception as error:  # a library built for another torch fails in ways of its own
        return f"{first_line(error)}: {CHECKOUT.how_to_get()}"
    return ""


@functools.cache
def _refusal(dtype: str) -> str:
    """What `linear_forward` says to that dtype; releases differ in whether they take bf16. Empty if it computes."""
    import torch
    from fmoe.linear import MOELinear

    from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE

    if not torch.cuda.is_available():
        return ""
    sizes: dict[str, Any] = {"dtype": TORCH_DTYPE[dtype], "device": "cuda"}
    try:
        with torch.inference_mode():
            MOELinear.apply(torch.ones(8, 8, **sizes), torch.tensor([8]), torch.ones(1, 8, 8, **sizes), None)
    except RuntimeError as error:
        return first_line(error)
    return ""
