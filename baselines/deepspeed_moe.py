"""DeepSpeed's MoE layer (DeepSpeed-MoE, arXiv 2201.05596) on one GPU: AutoEPMoELayer of DeepSpeed 0.19, SwiGLU experts.

It is the layer that DeepSpeed now puts in place of a model's own: router, sort, rows padded to a multiple of 8 for each
expert, three grouped GEMMs of PyTorch's, Triton kernels for the permutation, SiLU x up and the weighted sum. With an
expert-parallel size of 1 it exchanges nothing and needs no process group. DeepSpeed's other layers are not measured:
`deepspeed.moe.layer.MoE` pads every expert to one capacity and runs them one by one, and the inference engine's
`MoEGEMM` is an extension that links a binary of the package deepspeed-kernels, last released in 2023. A pruned tree in
.peers/deepspeed is used if there is one (baselines/builds/offline), else an installed deepspeed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import (
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
    unsupported,
)

from .install import trees
from .install.installed import first_line, installed_version
from .parts.in_build import run_once
from .parts.shapes import WHOLE_16_BYTES, divisible

if TYPE_CHECKING:
    import torch

VERSION = "0.19.8"
INSTALL = f"pip install deepspeed=={VERSION}"


class DeepspeedMoe(Implementation):
    name = "deepspeed_moe"
    family = "training"
    source = f"PyPI deepspeed {VERSION}: AutoEPMoELayer with grouped_mm and fused_weighted_sum"

    def version(self) -> str:
        return trees.record(trees.folder("deepspeed")).get("deepspeed", "") or installed_version("deepspeed")

    def search_path(self) -> list[Path]:
        return trees.search_path("deepspeed")

    def config(self, case: Case) -> str:
        return "ep_size=1 use_grouped_mm=true gate_up_impl=separate combine_impl=fused_weighted_sum"

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        if case.dtype != "bf16":
            return unsupported(f"DeepSpeed's experts run torch._grouped_mm, which takes bf16 only, got {case.dtype}")
        return divisible(case, WHOLE_16_BYTES, "torch._grouped_mm needs rows of whole 16 bytes")

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        layer = make_layer(case, weights, use_grouped_mm=True, combine_impl="fused_weighted_sum")

        def forward(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return layer(x.unsqueeze(0)).squeeze(0)  # its x is [batch, sequence, hidden]

        return run_once(forward, case, weights)


def make_layer(case: Case, weights: Weights, use_grouped_mm: bool, combine_impl: str) -> torch.nn.Module:
    """AutoEPMoELayer on one rank, its parameters being the workload's tensors.

    DeepSpeed makes it out of a model's own layer, whose weights it copies: that one lies on the meta device here, where
    its weights take no memory, and the workload's take the place of the copies.
    """
    import torch

    from .parts.parameters import check_none_left, put

    AutoEPMoELayer, AutoEPConfig, MoELayerSpec = _deepspeed()
    gate = case.gate
    grouped = gate.groups > 1
    spec = MoELayerSpec(
        moe_module_name="mlp", model_family="of the case", router_name="gate", experts_name="experts",
        expert_storage="fused_3d", expert_w1_name="gate_proj", expert_w2_name="down_proj", expert_w3_name="up_proj",
        num_experts=case.num_experts, top_k=case.top_k, hidden_size=case.hidden_dim, ffn_hidden_size=case.ffn_dim,
        score_func=gate.scoring, score_apply="post", route_norm=gate.renormalize, route_scale=gate.scale,
        num_expert_groups=gate.groups if grouped else None, num_limited_groups=gate.top_groups if grouped else None,
        gate_bias=False, return_router_logits=False, router_logits_capture_target="none",
        router_logits_capture_index=None, router_logits_capture_layer_name=None, has_shared_experts=False,
        shared_experts_name="",
    )  # fmt: skip
    config = AutoEPConfig(use_grouped_mm=use_grouped_mm, gate_up_impl="separate", combine_impl=combine_impl)
    with torch.device("meta"):
        layer = AutoEPMoELayer(spec, _model_layer(case), ep_size=1, ep_rank=0, config=config).eval()
    put("DeepSpeed", layer.router.gate, {"weight": weights.router()})
    put("DeepSpeed", layer.experts, {"w1": weights.gate("nk"), "w2": weights.down("nk"), "w3": weights.up("nk")})
    layer.router.e_score_correction_bias = weights.correction_bias()
    layer.tokens_per_expert = torch.zeros(case.num_experts, device=weights.device)  # it counts its experts' tokens
    check_none_left("DeepSpeed", layer)
    return layer


def _model_layer(case: Case) -> torch.nn.Module:
    """The layer of a model that DeepSpeed replaces, by the names in the MoELayerSpec, on the current device."""
    import torch

    source = torch.nn.Module()
    source.gate = torch.nn.Linear(case.hidden_dim, case.num_experts, bias=False)
    source.experts = torch.nn.Module()
    up, down = (case.num_experts, case.ffn_dim, case.hidden_dim), (case.num_experts, case.hidden_dim, case.ffn_dim)
    for name, shape in (("gate_proj", up), ("up_proj", up), ("down_proj", down)):
        source.experts.register_parameter(name, torch.nn.Parameter(torch.empty(shape)))
    return source


@functools.cache
def _deepspeed() -> tuple[Any, Any, Any]:
    """AutoEPMoELayer, AutoEPConfig, MoELayerSpec. Raises what importing DeepSpeed raises."""
    with trees.importable("deepspeed"):
        from deepspeed.module_inject.auto_ep_config import AutoEPConfig, MoELayerSpec
        from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    return AutoEPMoELayer, AutoEPConfig, MoELayerSpec


@functools.cache
def _problem() -> str:
    """Why DeepSpeed cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    try:
        _deepspeed()
    except Exception as error:  # its set-up looks for compilers and accelerators, and fails in ways of its own
        return f"{first_line(error)}: {INSTALL}"
    if not torch.cuda.is_available():
        return "DeepSpeed's MoE layer runs Triton kernels: it needs an NVIDIA GPU"
    return ""
