"""The forward of `fast`: logits, routing, gate and up, down, combine."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..checks import check_contiguous, check_layer, check_tensor
from ..chunks import in_chunks
from ..gating import Gating
from ..pdl import launch_options, release_next, wait_for_previous
from ..weighting import weighted_by_down
from .blocks import launch_routing
from .choose import choose_tiles
from .few import launch_few
from .gemm import launch_down, launch_gate_up
from .logits import launch_logits
from .tile_types import FastTiles, FewTiles


@triton.jit(do_not_specialize=["num_tokens"])
def _combine_kernel(
    out, weights, y, num_tokens,
    TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y[t] = sum over j of weights[t, j] * out[t, j], in float32, one program for a piece of a token.

    weights: None where `out` holds the weighted outputs already.
    """
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    total = tl.zeros([BLOCK_H], dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        values = tl.load(out + (token * TOP_K + j) * HIDDEN + column, mask=column < HIDDEN, other=0.0)
        if weights is None:
            total += values.to(tl.float32)
        else:
            total += tl.load(weights + token * TOP_K + j) * values.to(tl.float32)
    tl.store(y + token * HIDDEN + column, total.to(y.dtype.element_ty), mask=column < HIDDEN)


def forward(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles) -> torch.Tensor:
    """What `fast_moe` does, with its arguments, where no graph is being traced."""
    gating = Gating() if gating is None else gating
    _check(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles)

    def run(rows: torch.Tensor) -> torch.Tensor:
        return _forward(rows, router_weight, gate_up, down, top_k, gating, correction_bias, tiles)

    return in_chunks(run, x, top_k)


def _forward(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles) -> torch.Tensor:
    """What `forward` does with a batch that the kernels take at once, once it is checked."""
    tokens, hidden = x.shape
    num_experts, ffn = down.shape[0], down.shape[2]
    tiles = tiles or choose_tiles(x.device, num_experts, top_k, hidden, ffn, tokens)
    logits = launch_logits(x, router_weight)
    if isinstance(tiles, FewTiles):
        return launch_few(x, logits, gate_up, down, top_k, gating, correction_bias, tiles)
    tiles = tiles.fitting(gate_up, down)
    blocks = launch_routing(logits, top_k, gating, correction_bias, tiles.block_m)
    inner = launch_gate_up(x, gate_up, blocks, top_k, tiles)
    return launch_combine(launch_down(inner, down, blocks, tiles), blocks.weights)


def launch_combine(out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """y [tokens, hidden] in the dtype of out, [N, hidden] from `launch_down`; weights: float32 [tokens, top_k]."""
    (tokens, top_k), hidden = weights.shape, out.shape[1]
    y = torch.empty((tokens, hidden), dtype=out.dtype, device=out.device)
    block_h = min(triton.next_power_of_2(hidden), 1024 if out.is_cuda else 2**16)
    _combine_kernel[(tokens, triton.cdiv(hidden, block_h))](
        out, None if weighted_by_down(out.dtype) else weights, y, tokens,
        TOP_K=top_k, HIDDEN=hidden, BLOCK_H=block_h, **launch_options(out.device),
    )  # fmt: skip
    return y


def _check(x, router_weight, gate_up, down, top_k, gating, correction_bias, tiles) -> None:
    check_layer(x, router_weight, gate_up, down, top_k)
    num_experts = router_weight.shape[0]
    if tiles is not None and not isinstance(tiles, FastTiles | FewTiles):
        raise TypeError(f"tiles must be FastTiles or FewTiles, got {type(tiles).__name__}")
    if isinstance(tiles, FewTiles) and x.shape[0] * top_k * max(down.shape[1:]) >= 2**31:
        raise ValueError(f"{x.shape[0]} tokens are too many for FewTiles: their offsets have 32 bits")
    for name, tensor in (("router_weight", router_weight), ("gate_up", gate_up), ("down", down)):
        check_contiguous(name, tensor)
    check_gating(gating, correction_bias, num_experts, top_k, x)


def check_gating(gating, correction_bias, num_experts: int, top_k: int, x: torch.Tensor) -> None:
    """Raises TypeError or ValueError for a gating that does not go with its bias or with the experts."""
    if not isinstance(gating, Gating):
        raise TypeError(f"gating must be a Gating, got {type(gating).__name__}")
    if gating.correction_bias != (correction_bias is not None):
        raise ValueError("correction_bias must be given exactly when the gating has one")
    if correction_bias is not None:
        check_tensor("correction_bias", correction_bias, (num_experts,), (torch.float32,), x)
    if gating.groups > 1:
        members = num_experts // gating.groups
        if num_experts % gating.groups or members < 2:
            raise ValueError(
                f"{num_experts} experts in {gating.groups} groups: groups must have the same size, two experts or more"
            )
        if top_k > gating.top_groups * members:
            raise ValueError(f"top_k={top_k} does not fit into {gating.top_groups} groups of {members} experts")
