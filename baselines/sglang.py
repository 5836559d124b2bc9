"""SGLang's fused MoE: its Triton kernel `fused_moe_kernel`, its Triton router, alignment op and activation.

SGLang chooses the tile itself: from the table that it ships for the GPU and shape, newest Triton first, at the nearest
batch size, else by its default heuristic. A pruned tree in .peers/sglang (baselines/builds/offline) is used if it is
there, else an installed sglang. SGLang compiles the router GEMM of DeepSeek's gate and the activation from CUDA sources
when they are first used, in `build`. Where nvcc, ninja or apache-tvm-ffi are missing, PyTorch's GEMM and the compiled
`silu_and_mul` of sglang-kernel serve, and the row's config says so. fp8_block weights run in the same kernel, which
SGLang precedes by one that quantises the rows by token and 128 columns (W8A8).
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import NEEDS, Case, Forward, Weights

from .install import sglang_tree
from .install.installed import first_line
from .parts.in_build import run_once
from .parts.serving import Route, ServingSystem, origin, router_gemm_serves, words

if TYPE_CHECKING:
    import torch

TABLE_KINDS: dict[str, tuple[str | None, list[int] | None]] = {
    "none": (None, None),
    "fp8_block": ("fp8_w8a8", [128, 128]),
}
"""What SGLang's tile tables call a weight format: (dtype, block shape)."""
ROUTER_EXPERTS = (256, 384)
ROUTER_HIDDEN = 1024
"""SGLang's own router GEMM serves these numbers of experts, and multiples of this hidden_dim, as its MoEGate asks."""


class Sglang(ServingSystem):
    name = "sglang"
    label = "SGLang"
    family = "serving"
    source = f"PyPI sglang {sglang_tree.VERSION}: fused_experts, moe_fused_gate and its shipped tile tables"
    quants = tuple(TABLE_KINDS)
    facts = tuple(NEEDS)

    def version(self) -> str:
        return sglang_tree.version()

    def search_path(self) -> list[Path]:
        return sglang_tree.search_path()

    def problem(self) -> str:
        return _problem()

    def activations(self, case: Case) -> str:
        return "a8" if case.quant == "fp8_block" else "a16"

    def build(self, case: Case, weights: Weights) -> Forward:
        from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

        from .parts.shared_expert import adds_shared

        fused_moe = sglang_tree.one_gpu()
        w13, w2, options = _operands(case, weights)
        route, router_gemm = _router(case, weights)
        compiled = _activation(weights.dtype) + (f" {_quantization(weights.dtype)}" if options else "")
        runner = MoeRunnerConfig(
            num_experts=case.num_experts, num_local_experts=case.num_experts, top_k=case.top_k,
            hidden_size=case.hidden_dim, intermediate_size_per_partition=case.ffn_dim, inplace=False,
            apply_router_weight_on_input=case.facts.weights_on_input, **_clamped(case),
        )  # fmt: skip
        biases = {"b1": weights.gate_up_bias(), "b2": weights.down_bias()} if case.facts.expert_bias else {}
        add_shared = adds_shared(case, weights, fused_moe.silu_and_mul)

        def forward(x: torch.Tensor) -> torch.Tensor:
            return add_shared(x, fused_moe.fused_experts(x, w13, w2, (*route(x), None), runner, **options, **biases))

        run_once(forward, case, weights)
        self.configured(case, f"{_tiles(case, w13, w2)} {router_gemm} {compiled}")
        return forward


def _operands(case: Case, weights: Weights) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """([E, 2 * ffn, hidden], gate rows first; [E, hidden, ffn]; what SGLang wants to know of packed weights)."""
    if case.quant == "none":
        return weights.gate_up("nk"), weights.down("nk"), {}
    gate_up, down = weights.packed_gate_up(), weights.packed_down()
    _, block = TABLE_KINDS[case.quant]
    options = {"use_fp8_w8a8": True, "w1_scale": gate_up.scales, "w2_scale": down.scales, "block_shape": block}
    return gate_up.values, down.values, options


def _clamped(case: Case) -> dict[str, Any]:
    """What SGLang's runner wants to know of the clamped SwiGLU; nothing for another activation."""
    if case.facts.activation == "silu":
        return {}
    from tritonmoe_bench.experiments.workload.reference import SWIGLU_ALPHA, SWIGLU_LIMIT

    return {"gemm1_alpha": SWIGLU_ALPHA, "gemm1_clamp_limit": SWIGLU_LIMIT, "gate_up_interleaved": False}


def _router(case: Case, weights: Weights) -> tuple[Route, str]:
    """x -> (float32 weights, int32 experts), both [tokens, top_k]: the router GEMM and SGLang's Triton router.

    Beside it, in words, whose GEMM it is.
    """
    import torch
    from sglang.kernels.ops.moe.moe_fused_gate import moe_fused_gate

    router, router_bias, bias = weights.router(), weights.router_bias(), weights.correction_bias()
    if bias is None:
        bias = torch.zeros(case.num_experts, dtype=torch.float32, device=weights.device)
    gate, top_k = case.gate, case.top_k
    own_gemm, whose = None, "router_gemm=torch"
    if _has_router_gemm(case, torch.cuda.get_device_capability()):
        own_gemm, whose = _router_gemm(case.num_experts, case.hidden_dim)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = x.to(router.dtype)
        logits = (
            own_gemm(x, router, torch.float32) if own_gemm else torch.nn.functional.linear(rows, router, router_bias)
        )
        return moe_fused_gate(
            logits, bias, top_k, scoring_func=gate.scoring, renormalize=gate.renormalize,
            routed_scaling_factor=gate.scale, apply_routed_scaling_factor_on_output=gate.scale != 1.0,
            num_expert_group=gate.groups, topk_group=gate.top_groups,
        )  # fmt: skip

    return route, whose


def _has_router_gemm(case: Case, capability: tuple[int, int]) -> bool:
    fits = case.num_experts in ROUTER_EXPERTS and case.hidden_dim % ROUTER_HIDDEN == 0
    return fits and router_gemm_serves(case, capability)


@functools.cache
def _router_gemm(num_experts: int, hidden_dim: int) -> tuple[Callable[..., torch.Tensor] | None, str]:
    """SGLang's own router GEMM, compiled now, or None where it cannot be; in words, which."""
    from sglang.kernels.jit.utils import is_arch_support_pdl
    from sglang.kernels.ops.gemm.dsv3_router_gemm import dsv3_router_gemm, dsv3_router_gemm_module

    try:
        dsv3_router_gemm_module(num_experts, hidden_dim, is_arch_support_pdl(), True)
    except Exception as error:  # apache-tvm-ffi, nvcc and ninja each fail in ways of their own
        return None, f"router_gemm=torch (no jit: {first_line(error)})"
    return dsv3_router_gemm, "router_gemm=jit"


@functools.cache
def _activation(dtype: torch.dtype) -> str:
    """Which silu_and_mul runs, in words: SGLang's own, compiled now, else the one that sglang-kernel ships compiled."""
    from sglang.kernels.ops.activation.activation import activation_module

    try:
        activation_module(dtype)
    except Exception as error:  # apache-tvm-ffi, nvcc and ninja each fail in ways of their own
        from sgl_kernel import silu_and_mul

        sglang_tree.one_gpu().silu_and_mul = silu_and_mul
        return f"silu_and_mul=sgl_kernel (no jit: {first_line(error)})"
    return "silu_and_mul=jit"


@functools.cache
def _quantization(dtype: torch.dtype) -> str:
    """Which kernel quantises rows, in words: SGLang's own in CUDA, compiled now, else its own in Triton."""
    import torch
    from sglang.kernels.jit.utils import is_arch_support_pdl
    from sglang.kernels.ops.moe import fused_moe_triton_kernels
    from sglang.kernels.ops.quantization import fp8_kernel

    try:
        made = importlib.import_module("sglang.kernels.ops.quantization.per_token_group_quant")
        made._jit_module(dtype, torch.float8_e4m3fn, 128, False, True, True, False, False, is_arch_support_pdl())
    except Exception as error:  # apache-tvm-ffi, nvcc and ninja each fail in ways of their own
        fused_moe_triton_kernels.sglang_per_token_group_quant_fp8 = fp8_kernel._per_token_group_quant_8bit_raw
        return f"quantization=triton (no jit: {first_line(error)})"
    return "quantization=jit"


def _tiles(case: Case, w13: torch.Tensor, w2: torch.Tensor) -> str:
    """The tiles of both GEMMs and where they come from."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as tables

    dtype, block = TABLE_KINDS[case.quant]
    tile, (down, _) = tables.try_get_optimal_moe_config(
        w13.shape, w2.shape, case.top_k, dtype, case.tokens, block_shape=block, return_down_config=True
    )
    table = tables.get_moe_configs(case.num_experts, case.ffn_dim, dtype, *(block or (0, 0)))
    both = words(tile) if down in (None, tile) else f"{words(tile)} down: {words(down)}"
    return f"{both} ({origin(table, tables.get_config_file_name(case.num_experts, case.ffn_dim, dtype, block), case)})"


@functools.cache
def _problem() -> str:
    """Why SGLang cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    logging.getLogger("sglang").setLevel(logging.ERROR)  # it warns at every shape without a table
    if not torch.cuda.is_available():
        return f"SGLang's kernels need an NVIDIA GPU: {sglang_tree.INSTALL}"
    wrong = sglang_tree.wrong_gpu(torch.cuda.get_device_capability())
    if wrong:
        return wrong
    try:
        fused_moe = sglang_tree.one_gpu()
        import sgl_kernel  # noqa: F401
    except Exception as error:  # libraries built for another torch or CUDA fail in ways of their own
        return f"{first_line(error)}: {sglang_tree.INSTALL}"
    if not hasattr(fused_moe, "silu_and_mul"):
        return f"this sglang was not set up for CUDA: {sglang_tree.INSTALL}"
    return ""
