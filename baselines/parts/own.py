"""What the adapters of our own kernels ask of this machine and of a case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import Case

if TYPE_CHECKING:
    import torch


def device() -> torch.device:
    """The GPU, else the CPU, on which kernels run in Triton's interpreter."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def layer(case: Case) -> tuple[int, int, int, int]:
    """(num_experts, top_k, hidden_dim, ffn_dim), as the choices of tiles take it."""
    return case.num_experts, case.top_k, case.hidden_dim, case.ffn_dim
