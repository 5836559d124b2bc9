"""Tutel (arXiv 2206.03382): its `moe_layer` with SwiGLU experts on one GPU, no token dropped, in its two modes.

capacity_factor=0 lets each forward find the largest load of an expert, for which it waits, and pads all experts to it.
`tutel` has Tutel's own experts for SwiGLU (`llama_ffn`), three batched GEMMs over the padded rows. `tutel_megablocks`
has its mode for few tokens (megablocks_size=1): a loop on the host calls cuBLAS for each active expert on its own rows.
`llama_ffn` ignores that mode, so the experts are written here, after Tutel's `ffn`. Tutel is not on PyPI, and its CUDA
sources are compiled when it is installed: TRITONMOE_TUTEL_PATH names a checkout that was built in place.
"""

from __future__ import annotations

import functools
import importlib
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
from tritonmoe_bench.kernels.gating import Gating

from .install import checkouts
from .install.installed import first_line
from .parts.in_build import run_once

if TYPE_CHECKING:
    import torch

CHECKOUT = checkouts.Checkout(
    "tutel", "tutel", "microsoft/tutel", "tutel", build=" && (cd tutel && python setup.py build_ext --inplace)"
)
CAPACITY_SYNC = "extract_critical with capacity_factor=0: int(max load), by which it sizes the padded activations"
MEGABLOCKS_SIZE = 1
"""Rows to which Tutel pads an expert in its mode for few tokens."""


class Tutel(checkouts.CheckoutSystem):
    name = "tutel"
    checkout = CHECKOUT
    family = "training"
    source = f"github.com/{CHECKOUT.repository}: tutel.moe.moe_layer with llama_ffn experts"
    host_sync = CAPACITY_SYNC
    revision = 2  # 1: kernels of one dtype also ran for the other, where a process measured both

    def config(self, case: Case) -> str:
        return f"capacity_factor=0 normalize_gate={str(case.gate.renormalize).lower()} fp32_gate=false"

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.gate not in (Gating(), Gating(renormalize=True)):
            return unsupported(f"gating={case.gating}: Tutel's layer has softmax over all experts, then top-k, "
                               "renormalised or not")  # fmt: skip
        if case.hidden_dim % 2:
            return unsupported(f"Tutel needs an even hidden_dim, got {case.hidden_dim}")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        return _forward(case, weights, _padded_experts(case, weights), 0)


class TutelMegablocks(Tutel):
    """Tutel's mode for few tokens: only the rows of active experts are multiplied."""

    name = "tutel_megablocks"
    source = f"github.com/{CHECKOUT.repository}: tutel.moe.moe_layer with megablocks_size={MEGABLOCKS_SIZE}"
    host_sync = (
        f"{CAPACITY_SYNC}; sparse_bmm_infer copies the counts to the host, once per GEMM, and loops over experts"
    )
    revision = 1

    def config(self, case: Case) -> str:
        return f"{super().config(case)} megablocks_size={MEGABLOCKS_SIZE}"

    def check(self, case: Case) -> Check:
        check = super().check(case)
        if check is OK and case.num_experts < 2:
            return unsupported("Tutel turns megablocks_size off for a single expert: the row of tutel is its path")
        return check

    def build(self, case: Case, weights: Weights) -> Forward:
        return _forward(case, weights, _sparse_experts(case, weights), MEGABLOCKS_SIZE)


def _forward(case: Case, weights: Weights, experts: torch.nn.Module, megablocks_size: int) -> Forward:
    """The layer with these experts, warmed up."""
    import torch
    from tutel import moe

    from .parts.parameters import put

    layer = moe.moe_layer(
        gate_type={"type": "top", "k": case.top_k, "capacity_factor": 0.0, "fp32_gate": False},
        model_dim=case.hidden_dim,
        experts={"type": "custom", "module": lambda **options: experts, "count_per_node": case.num_experts},
        normalize_gate=case.gate.renormalize,
    ).eval()
    put("Tutel", layer.gates[0].wg, {"weight": weights.router()})

    def forward(x: torch.Tensor) -> torch.Tensor:
        _use_kernels_of(x.dtype)
        with torch.inference_mode():
            return layer(x, megablocks_size=megablocks_size)

    return run_once(forward, case, weights)


def _padded_experts(case: Case, weights: Weights) -> torch.nn.Module:
    """Tutel's own experts, which hold their weights flat, over the workload's tensors.

    They are made on the meta device, since Tutel would fill its parameters, in float32, with random numbers.
    """
    import torch

    from .parts.parameters import put

    module = importlib.import_module("tutel.experts.llama_ffn").ExpertModule
    with torch.device("meta"):
        experts = module(case.hidden_dim, case.ffn_dim, case.num_experts, 1)
    flat = {"W_fc1": weights.gate("kn"), "W_fc2": weights.up("kn"), "W_fc3": weights.down("kn")}
    put("Tutel", experts, {name: tensor.flatten() for name, tensor in flat.items()})
    return experts


def _sparse_experts(case: Case, weights: Weights) -> torch.nn.Module:
    """SwiGLU experts by Tutel's `sparse_bmm_infer`, called as its `ffn` calls it."""
    import torch

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up = torch.nn.Parameter(weights.gate_up("nk"), requires_grad=False)
            self.down = torch.nn.Parameter(weights.down("nk"), requires_grad=False)

        def forward(self, x: torch.Tensor, layer: Any) -> torch.Tensor:
            """x and y: [num_experts, rows, hidden]; rows of an expert beyond its count hold anything."""
            multiply, size = torch.ops.tutel_ops.sparse_bmm_infer, layer.megablocks_size
            blocks = torch.div(layer.dispatch_count + (size - 1), size, rounding_mode="floor")
            gate, up = multiply(x, self.gate_up, blocks, True, size).chunk(2, dim=-1)
            return multiply(torch.nn.functional.silu(gate) * up, self.down, blocks, True, size)

    return Experts()


_kept: dict[torch.dtype, tuple[dict, torch.Tensor | None]] = {}
_dtype_in_use: list[torch.dtype] = []


def _use_kernels_of(dtype: torch.dtype) -> None:
    """Gives Tutel the dispatch kernels of this dtype: it keeps them, and a tensor of ones, by device alone."""
    if _dtype_in_use == [dtype]:
        return
    dispatcher = importlib.import_module("tutel.impls.fast_dispatch").TutelMoeFastDispatcher
    for other in _dtype_in_use:
        _kept[other] = dispatcher.kernel_pool, dispatcher.ones_helper
    dispatcher.kernel_pool, dispatcher.ones_helper = _kept.get(dtype, ({}, None))
    _dtype_in_use[:] = [dtype]


@functools.cache
def _problem() -> str:
    """Why Tutel cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    how = CHECKOUT.how_to_get()
    try:
        from tutel import moe  # noqa: F401

        importlib.import_module("tutel.experts.llama_ffn")
    except Exception as error:  # its extension, built for another torch or CUDA, fails in ways of its own
        return f"{first_line(error)}: {how}"
    if not torch.cuda.is_available():
        return "Tutel's dispatch kernels need an NVIDIA GPU"
    return ""
