"""vLLM's fused MoE: its Triton kernel `fused_moe_kernel`, its own top-k and alignment ops, its tuned tile tables.

`vllm` takes the tile that vLLM itself would: from the table that it ships for this GPU and shape, at the nearest batch
size, else from its default heuristic. `vllm_tuned` serves shapes without a table: it tunes over vLLM's own search space
(baselines/parts/vllm_tuning.py). A pruned tree in .peers/vllm is used if there is one (baselines/builds/offline), else
an installed vllm. x is never written in place, and the down GEMM applies the routing weights.

fp8_block weights run in vLLM's block-wise W8A8 path: the same kernel, after one that quantises x, or the intermediate,
by token and 128 columns. int4 weights run in its W4A16 path, which has a CUDA kernel for few rows an expert
(`moe_wna16_gemm`) and a Triton kernel for more; vLLM itself takes Marlin where it can (baselines/vllm_marlin.py).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import NEEDS, OK, Case, Check, Forward, Weights, unsupported

from .install import trees, vllm_tree
from .install.installed import first_line
from .parts.in_build import run_once
from .parts.serving import Route, ServingSystem, Tile, origin, router_gemm_serves, words

if TYPE_CHECKING:
    import torch
    from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig

DSV3_ROUTER_SHAPES = ((256, 7168), (384, 7168))
"""(num_experts, hidden_dim) of vLLM's own router GEMM."""
TABLE_KINDS: dict[str, tuple[str | None, list[int] | None]] = {
    "none": (None, None),
    "fp8_block": ("fp8_w8a8", [128, 128]),
    "int4": ("int4_w4a16", [0, 128]),
    "int4_g32": ("int4_w4a16", [0, 32]),
}
"""What vLLM's tile tables call a weight format: (dtype, block shape)."""
VALUES_PER_COLUMN = {"int4_w4a16": 2}
"""Weights that a column of a stacked tensor holds, where it is not one."""


class Vllm(ServingSystem):
    name = "vllm"
    label = "vLLM"
    family = "vllm"
    source = f"PyPI vllm {vllm_tree.VERSION}: fused_experts, fused_topk and its shipped tile tables"
    quants = tuple(TABLE_KINDS)
    facts = tuple(NEEDS)

    def version(self) -> str:
        return vllm_tree.version()

    def search_path(self) -> list[Path]:
        return trees.search_path("vllm")

    def problem(self) -> str:
        return _problem()

    def build(self, case: Case, weights: Weights) -> Forward:
        forward = run_once(_forward(case, weights, None), case, weights)
        self.configured(case, f"{words(_own_tile(case))} ({_origin(case)})")
        return forward

    def activations(self, case: Case) -> str:
        return "a8" if case.quant == "fp8_block" else "a16"


class VllmTuned(Vllm):
    """The same code with a tile tuned here: in 16 bits for shapes that vLLM ships no table for on this GPU, in
    fp8_block for all, because some of those tables are older than the Triton that compiles the kernel."""

    name = "vllm_tuned"
    quants = ("none", "fp8_block")
    source = f"PyPI vllm {vllm_tree.VERSION}: fused_experts, fused_topk, tile tuned over its own search space"

    def check_shape(self, case: Case) -> Check:
        from .parts import vllm_tuning

        table = _table(case) if case.quant == "none" else ""
        if table and vllm_tuning.known(case) is None:
            return unsupported(f"vLLM ships {table}, tuned for this shape and GPU: the row of vllm is its best")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        from .parts import vllm_tuning

        tile, when = vllm_tuning.known(case), "tuned before"
        if tile is None:
            own = [] if case.quant == "none" else [_own_tile(case)]
            tile = vllm_tuning.tune(case, weights, lambda candidate: _forward(case, weights, candidate), own)
            vllm_tuning.remember(case, tile)
            when = "tuned now"
        forward = run_once(_forward(case, weights, tile), case, weights)
        self.configured(case, f"{words(tile)} ({when})")
        return forward


def _forward(case: Case, weights: Weights, tile: Tile | None) -> Forward:
    """The whole layer by vLLM's functions; `tile` overrides the one that vLLM would choose."""
    from vllm.model_executor.layers.fused_moe import override_config
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

    from .parts.shared_expert import adds_shared

    w13, w2, quant_config = _operands(case, weights)
    route, add_shared = router_of(case, weights), adds_shared(case, weights, _silu_and_mul)
    options = {"apply_router_weight_on_input": case.facts.weights_on_input, "quant_config": quant_config}
    if case.facts.activation != "silu":
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation

        options["activation"] = MoEActivation.SWIGLUOAI

    def forward(x: torch.Tensor) -> torch.Tensor:
        topk_weights, topk_ids = route(x)
        return add_shared(x, fused_experts(x, w13, w2, topk_weights, topk_ids, **options))

    if tile is None:
        return forward

    def with_tile(x: torch.Tensor) -> torch.Tensor:
        with override_config(tile):
            return forward(x)

    return with_tile


def _silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    import torch

    hidden = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
    torch.ops._C.silu_and_mul(hidden, gate_up)
    return hidden


def _operands(case: Case, weights: Weights) -> tuple[torch.Tensor, torch.Tensor, FusedMoEQuantConfig | None]:
    """([E, 2 * ffn, hidden], gate rows first, or in turn with up rows for the clamped activation; [E, hidden, ffn];
    what vLLM wants to know of biases and packed weights)."""
    if case.quant == "none":
        from .parts.interleaved import interleaved_bias, interleaved_gate_up

        in_turn, biases = case.facts.activation != "silu", None
        if case.facts.expert_bias:
            from vllm.model_executor.layers.fused_moe.config import biased_moe_quant_config

            bias = interleaved_bias(weights) if in_turn else weights.gate_up_bias()
            biases = biased_moe_quant_config(bias, weights.down_bias())
        return interleaved_gate_up(weights) if in_turn else weights.gate_up("nk"), weights.down("nk"), biases
    from vllm.model_executor.layers.fused_moe import config

    # Where vLLM sees a deep_gemm, it rounds the scales of activations up to powers of two, for this kernel too.
    os.environ["VLLM_USE_DEEP_GEMM"] = "0"
    gate_up, down = weights.packed_gate_up(), weights.packed_down()
    kind, block = TABLE_KINDS[case.quant]
    scales = {"w1_scale": gate_up.scales, "w2_scale": down.scales, "block_shape": block}
    if kind == "fp8_w8a8":
        made = config.fp8_w8a8_moe_quant_config(**scales)
    else:
        made = config.int4_w4a16_moe_quant_config(**scales, w1_zp=None, w2_zp=None)
    return gate_up.values, down.values, made


def router_of(case: Case, weights: Weights) -> Route:
    """x -> (float32 weights, int32 experts), both [tokens, top_k]: the router GEMM and vLLM's fused top-k."""
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.fused_moe.router.fused_topk_router import fused_topk

    router, router_bias, bias = weights.router(), weights.router_bias(), weights.correction_bias()
    top_k, gate = case.top_k, case.gate
    own_gemm = _has_router_gemm(case, torch.cuda.get_device_capability())

    def logits(x: torch.Tensor) -> torch.Tensor:
        if own_gemm:
            return ops.dsv3_router_gemm(x, router, x.dtype)
        return torch.nn.functional.linear(x.to(router.dtype), router, router_bias)

    def plain(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fused_topk(x, logits(x), top_k, gate.renormalize, scoring_func=gate.scoring)[:2]

    def biased(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigmoid = 1
        return ops.grouped_topk(
            logits(x), gate.groups, gate.top_groups, top_k, gate.renormalize, gate.scale, bias, sigmoid
        )

    return plain if bias is None else biased


def _has_router_gemm(case: Case, capability: tuple[int, int]) -> bool:
    from vllm import _custom_ops as ops

    serves = hasattr(ops, "dsv3_router_gemm")  # of 0.22.1; 0.33.0 has one in CuTe DSL, which the tree leaves out
    return serves and (case.num_experts, case.hidden_dim) in DSV3_ROUTER_SHAPES and router_gemm_serves(case, capability)


def _tables(case: Case) -> dict[int, Tile] | None:
    """Tiles by batch size that vLLM ships for the shape and weight format on this GPU, None if there are none."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    dtype, block = TABLE_KINDS[case.quant]
    return fused_moe.get_moe_configs(case.num_experts, case.ffn_dim, dtype, *(block or ()))


def _table(case: Case) -> str:
    """Name of the file of `_tables`, empty if there is none."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    if not _tables(case):
        return ""
    return fused_moe.get_config_file_name(case.num_experts, case.ffn_dim, *TABLE_KINDS[case.quant])


def _own_tile(case: Case) -> Tile:
    """The tile that vLLM itself takes: of its table, else of its heuristic."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    dtype, block = TABLE_KINDS[case.quant]
    packed = VALUES_PER_COLUMN.get(dtype or "", 1)
    w13 = (case.num_experts, 2 * case.ffn_dim, case.hidden_dim // packed)
    w2 = (case.num_experts, case.hidden_dim, case.ffn_dim // packed)
    return fused_moe.try_get_optimal_moe_config(w13, w2, case.top_k, dtype, case.tokens, block)


def _origin(case: Case) -> str:
    return origin(_tables(case), _table(case), case)


@functools.cache
def _problem() -> str:
    """Why vLLM cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is first imported
    try:
        from vllm.model_executor.layers.fused_moe import fused_moe
        from vllm.platforms import current_platform
    except Exception as error:  # libraries built for another torch or CUDA fail in ways of their own
        return f"{first_line(error)}: {vllm_tree.INSTALL}"
    if not torch.cuda.is_available():
        return "vLLM's kernels need an NVIDIA GPU"
    if not current_platform.is_cuda() or not hasattr(fused_moe, "fused_experts"):
        return f"this vLLM was not built for CUDA: {vllm_tree.INSTALL}"
    return trees.wrong_gpu(trees.folder("vllm"), torch.cuda.get_device_capability(), vllm_tree.INSTALL)
