"""vLLM's fused MoE: its Triton kernel `fused_moe_kernel`, its own top-k and alignment ops, its tuned tile tables.

`vllm` takes the tile as vLLM itself does: from the table it ships for this GPU and shape, at the nearest batch size,
else from its default heuristic. `vllm_tuned` serves the shapes without a table: it tunes over vLLM's own search space
(baselines/parts/vllm_tuning.py). A pruned tree in .peers is used if there is one (baselines/builds/offline), else an
installed vllm. x is never written in place, and the routing weights are applied in the down GEMM.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tritonmoe_bench.experiments.implementation.contract import (
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unavailable,
    unsupported,
)
from tritonmoe_bench.kernels.gating import Gating

from .install import tree

if TYPE_CHECKING:
    import torch


Tile = dict[str, int]
Route = Callable[["torch.Tensor"], "tuple[torch.Tensor, torch.Tensor]"]

DSV3_ROUTER_SHAPES = ((256, 7168), (384, 7168))
"""(num_experts, hidden_dim) of vLLM's own router GEMM, for bf16, up to DSV3_ROUTER_TOKENS and from Hopper on."""
DSV3_ROUTER_TOKENS = 16


class Vllm(Implementation):
    name = "vllm"
    family = "vllm"
    source = f"PyPI vllm {tree.VLLM_VERSION}: fused_experts, fused_topk and its shipped tile tables"

    def __init__(self) -> None:
        self._config: dict[tuple, str] = {}

    def version(self) -> str:
        return tree.record()["vllm"] if self.search_path() else tree.installed_version("vllm")

    def search_path(self) -> list[Path]:
        return tree.folders("vllm")

    def check(self, case: Case) -> Check:
        problem = _problem()
        if problem:
            return unavailable(problem)
        gate = case.gate
        plain = gate == Gating(gate.scoring, gate.renormalize)
        if not plain and not (gate.scoring == "sigmoid" and gate.correction_bias):
            return unsupported(f"gating={case.gating}: vLLM has softmax or sigmoid over all experts, renormalised or "
                               "not, and sigmoid with a correction bias, in groups or not")  # fmt: skip
        return self.check_shape(case)

    def check_shape(self, case: Case) -> Check:
        """`unsupported` for a shape that the row is not about."""
        return OK

    def config(self, case: Case) -> str:
        return self._config.get(_key(case), "")

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch
        from vllm.model_executor.layers.fused_moe import fused_moe

        forward = _forward(case, weights, None)
        with torch.inference_mode():
            forward(torch.randn(case.tokens, case.hidden_dim, dtype=weights.dtype, device=weights.device))
        w13, w2 = weights.gate_up("nk"), weights.down("nk")
        tile = fused_moe.try_get_optimal_moe_config(w13.shape, w2.shape, case.top_k, None, case.tokens)
        self._config[_key(case)] = f"{_words(tile)} ({_origin(case)})"
        return forward


class VllmTuned(Vllm):
    """The same code with a tile tuned here, for shapes that vLLM ships no table for on this GPU."""

    name = "vllm_tuned"
    source = f"PyPI vllm {tree.VLLM_VERSION}: fused_experts, fused_topk, tile tuned over its own search space"

    def check_shape(self, case: Case) -> Check:
        from .parts import vllm_tuning

        table = _table(case)
        if table and vllm_tuning.known(case) is None:
            return unsupported(f"vLLM ships {table}, tuned for this shape and GPU: the row of vllm is its best")
        return OK

    def build(self, case: Case, weights: Weights) -> Forward:
        import torch

        from .parts import vllm_tuning

        tile, origin = vllm_tuning.known(case), "tuned before"
        if tile is None:
            tile = vllm_tuning.tune(case, weights, lambda candidate: _forward(case, weights, candidate))
            vllm_tuning.remember(case, tile)
            origin = "tuned now"
        forward = _forward(case, weights, tile)
        with torch.inference_mode():
            forward(torch.randn(case.tokens, case.hidden_dim, dtype=weights.dtype, device=weights.device))
        self._config[_key(case)] = f"{_words(tile)} ({origin})"
        return forward


def _forward(case: Case, weights: Weights, tile: Tile | None) -> Forward:
    """The whole layer by vLLM's functions; `tile` overrides the one that vLLM would choose."""
    from vllm.model_executor.layers.fused_moe import override_config
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

    w13, w2 = weights.gate_up("nk"), weights.down("nk")  # [E, 2 * ffn, hidden], gate first; [E, hidden, ffn]
    route = _router(case, weights)

    def forward(x: torch.Tensor) -> torch.Tensor:
        topk_weights, topk_ids = route(x)
        return fused_experts(x, w13, w2, topk_weights, topk_ids, inplace=False, apply_router_weight_on_input=False)

    if tile is None:
        return forward

    def with_tile(x: torch.Tensor) -> torch.Tensor:
        with override_config(tile):
            return forward(x)

    return with_tile


def _router(case: Case, weights: Weights) -> Route:
    """x -> (float32 weights, int32 experts), both [tokens, top_k]: the router GEMM and vLLM's fused top-k."""
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.fused_moe.router.fused_topk_router import fused_topk

    router, bias = weights.router(), weights.correction_bias()
    top_k, gate = case.top_k, case.gate
    own_gemm = _has_router_gemm(case, torch.cuda.get_device_capability())

    def logits(x: torch.Tensor) -> torch.Tensor:
        return ops.dsv3_router_gemm(x, router, x.dtype) if own_gemm else torch.nn.functional.linear(x, router)

    def plain(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fused_topk(x, logits(x), top_k, gate.renormalize, scoring_func=gate.scoring)[:2]

    def biased(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigmoid = 1
        return ops.grouped_topk(
            logits(x), gate.groups, gate.top_groups, top_k, gate.renormalize, gate.scale, bias, sigmoid
        )

    return plain if bias is None else biased


def _has_router_gemm(case: Case, capability: tuple[int, int]) -> bool:
    shape = (case.num_experts, case.hidden_dim)
    fits = shape in DSV3_ROUTER_SHAPES and case.tokens <= DSV3_ROUTER_TOKENS
    return fits and case.dtype == "bf16" and capability >= (9, 0)


def _table(case: Case) -> str:
    """Name of the tile table that vLLM ships for the shape on this GPU, empty if there is none."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    if not fused_moe.get_moe_configs(case.num_experts, case.ffn_dim, None):
        return ""
    return fused_moe.get_config_file_name(case.num_experts, case.ffn_dim, None)


def _origin(case: Case) -> str:
    from vllm.model_executor.layers.fused_moe import fused_moe

    table = fused_moe.get_moe_configs(case.num_experts, case.ffn_dim, None)
    if not table:
        return "default heuristic"
    nearest = min(table, key=lambda tokens: abs(tokens - case.tokens))
    return f"{_table(case)} at M={nearest}"


def _words(tile: Tile) -> str:
    return " ".join(f"{name}={value}" for name, value in tile.items())


def _key(case: Case) -> tuple:
    return (*case.weights_key, case.top_k, case.tokens)


@functools.cache
def _problem() -> str:
    """Why vLLM cannot run in this process, with the command that would mend it; empty if it can."""
    import torch

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is first imported
    try:
        from vllm.model_executor.layers.fused_moe import fused_moe
        from vllm.platforms import current_platform
    except Exception as error:  # libraries built for another torch or CUDA fail in ways of their own
        return f"{tree.first_line(error)}: {tree.INSTALL}"
    if not torch.cuda.is_available():
        return "vLLM's kernels need an NVIDIA GPU"
    if not current_platform.is_cuda() or not hasattr(fused_moe, "fused_experts"):
        return f"this vLLM was not built for CUDA: {tree.INSTALL}"
    return tree.wrong_gpu(torch.cuda.get_device_capability())
