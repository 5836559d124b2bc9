"""`vllm_marlin`: vLLM's Marlin MoE, weights of 4 or 8 bits unpacked in registers, activations of 16 bits.

It is what vLLM takes for int4, and for fp8_block where activations stay in 16 bits. Router and top-k are those of
`vllm`; between the two GEMMs and after them run vLLM's own alignment, activation and sum. The weights are put into
Marlin's layout in `build` (parts/marlin.py). For Hopper vLLM ships Marlin as PTX, which the GPU's driver compiles at
first use; the tree in .peers/vllm holds it compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, Forward, Weights, unsupported

from .install import vllm_tree
from .parts.conversions import Conversions
from .parts.in_build import run_once
from .parts.serving import OF_ROUTER
from .vllm import Vllm, router_of

if TYPE_CHECKING:
    import torch

    from .parts.marlin import Marlin

HIDDEN_STEP = 64
"""Marlin's tiles are 64 or 128 wide; ffn is padded to 128, hidden_dim has to be a multiple of this."""


class VllmMarlin(Vllm):
    name = "vllm_marlin"
    source = f"PyPI vllm {vllm_tree.VERSION}: fused_marlin_moe, fused_topk"
    quants = ("fp8_block", "mxfp4", "int4", "int4_g32")
    facts = OF_ROUTER

    def __init__(self) -> None:
        super().__init__()
        self._operands = Conversions(_operands)

    def check_shape(self, case: Case) -> Check:
        if case.quant == "mxfp4" and case.dtype != "bf16":
            return unsupported(f"Marlin multiplies mxfp4 with bf16 only, got {case.dtype}")
        if case.hidden_dim % HIDDEN_STEP:
            return unsupported(f"Marlin takes hidden_dim in multiples of {HIDDEN_STEP}, got {case.hidden_dim}")
        return OK

    def activations(self, case: Case) -> str:
        return "a16"

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from vllm import _custom_ops as ops
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
        from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_make_workspace_new

        from .parts import marlin

        gate_up, down = self._operands(weights)
        quant_type = marlin.scalar_type(case.quant).id
        workspace = marlin_make_workspace_new(weights.device, 4)  # left as zeros by every GEMM
        route = router_of(case, weights)

        def forward(x: torch.Tensor) -> torch.Tensor:
            topk_weights, topk_ids = route(x)
            y = torch.empty_like(x)
            fused_marlin_moe(
                x, gate_up.values, down.values, None, None, gate_up.scales, down.scales, topk_weights, topk_ids,
                quant_type_id=quant_type, global_num_experts=case.num_experts, workspace=workspace,
                moe_sum=ops.moe_sum, output=y,
            )  # fmt: skip
            return y

        self.configured(case, f"ffn={gate_up.ffn} tiles by Marlin")
        return run_once(forward, case, weights)


def _operands(weights: Weights) -> tuple[Marlin, Marlin]:
    """Gate and up, and down."""
    from .parts import marlin

    return (marlin.gate_up(weights.packed_gate_up(), weights.dtype), marlin.down(weights.packed_down(), weights.dtype))
