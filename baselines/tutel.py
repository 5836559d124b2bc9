"""Tutel (arXiv 2206.03382): its `moe_layer` with SwiGLU experts (`llama_ffn`) on one GPU, no token dropped.

capacity_factor=0 lets each forward find the largest load of an expert, for which it waits, and pads all experts to it;
the experts are then three batched GEMMs. Not on PyPI, and its CUDA sources are compiled when it is installed:
TRITONMOE_TUTEL_PATH names a checkout that was built in place.
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

from .install import checkouts, tree

if TYPE_CHECKING:
    import torch


NAME, PACKAGE, REPOSITORY = "tutel", "tutel", "microsoft/tutel"
BUILD = " && (cd tutel && python setup.py build_ext --inplace)"


class Tutel(checkouts.CheckoutSystem):
    name, package = NAME, PACKAGE
    distribution = "tutel"
    family = "training"
    source = f"github.com/{REPOSITORY}: tutel.moe.moe_layer with llama_ffn experts"
    host_sync = "extract_critical with capacity_factor=0: int(max load), by which it sizes the padded activations"

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
        import torch

        layer = _layer(case, weights)

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return layer(x)

        forward(torch.randn(case.tokens, case.hidden_dim, dtype=weights.dtype, device=weights.device))
        return forward


def _layer(case: Case, weights: Weights) -> torch.nn.Module:
    """Tutel's layer, its parameters being the workload's tensors. Its experts hold theirs flat.

    The experts are made on the meta device, as a custom module that is Tutel's own, since Tutel would fill its
    parameters, in float32, with random numbers.
    """
    import torch
    from tutel import moe

    experts = importlib.import_module("tutel.experts.llama_ffn").ExpertModule

    def on_meta(**options: Any) -> torch.nn.Module:
        with torch.device("meta"):
            return experts(**options)

    layer = moe.moe_layer(
        gate_type={"type": "top", "k": case.top_k, "capacity_factor": 0.0, "fp32_gate": False},
        model_dim=case.hidden_dim,
        experts={
            "type": "custom",
            "module": on_meta,
            "count_per_node": case.num_experts,
            "hidden_size_per_expert": case.ffn_dim,
        },
        normalize_gate=case.gate.renormalize,
    ).eval()
    _set(layer.experts, "W_fc1", weights.gate("kn").flatten())
    _set(layer.experts, "W_fc2", weights.up("kn").flatten())
    _set(layer.experts, "W_fc3", weights.down("kn").flatten())
    _set(layer.gates[0].wg, "weight", weights.router())
    return layer


def _set(module: Any, name: str, tensor: torch.Tensor) -> None:
    """Makes `tensor` itself the parameter. Raises ValueError if Tutel wants another shape."""
    import torch

    wanted = getattr(module, name)
    if wanted.shape != tensor.shape:
        raise ValueError(f"this Tutel wants {name} as {list(wanted.shape)}, the workload has {list(tensor.shape)}")
    setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))


@functools.cache
def _problem() -> str:
    """Why Tutel cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    how = checkouts.how_to_get(NAME, PACKAGE, REPOSITORY, BUILD)
    try:
        from tutel import moe  # noqa: F401

        importlib.import_module("tutel.experts.llama_ffn")
    except Exception as error:  # its extension, built for another torch or CUDA, fails in ways of its own
        return f"{tree.first_line(error)}: {how}"
    if not torch.cuda.is_available():
        return "Tutel's dispatch kernels need an NVIDIA GPU"
    return ""
