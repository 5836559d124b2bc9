"""The forward of `fast`: logits, routing, gate and up, down, combine; or what is left of it where routing is given."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..chunks import chunks
from ..formats import Packed
from ..formats.four_bits import FourBits
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from ..target import target_of
from .arguments import check_arguments
from .choose import choose_tiles, invariant_tiles
from .choose_packed import scheduled_tiles
from .epilogue import PLAIN, Epilogue
from .experts import Experts
from .few import launch_few
from .few_w4 import launch_few_w4
from .few_w4_parts import launch_planes
from .gemm import launch_down, launch_gate_up
from .joined import launch_joined
from .known import describe, known_tiles, remember
from .local import Local, expert_of, lookup
from .one_grid import launch_one_grid
from .packed import invariant_packed_tiles, launch_packed_down, launch_packed_gate_up, packed_tiles, quantized
from .route import Chosen, Router, joinable
from .tile_types import AnyTiles, FewTiles, JoinedTiles

WARP_COLUMNS = 128
"""Of the combine: columns of a warp."""
MOST_WARPS_ALONE = 512
"""Up to so many warps in all, each is a program of its own; beyond, eight are one."""


@triton.jit(do_not_specialize=["num_tokens", "num_global"])
def _combine_kernel(
    out, weights, experts, expert_map, y, num_tokens, num_global,
    LOCAL: tl.constexpr, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr, BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """y[t] = sum over parts and j of weights[t, j] * out[part, t, j], in float32, a program for a piece of a token.

    weights: None where `out` holds the weighted outputs already. Slots without an expert here have no outputs.
    """
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    total = tl.zeros([BLOCK_H], dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        end = HIDDEN
        if LOCAL is not None:
            expert = expert_of(experts, expert_map, num_global, token * TOP_K + j, True, LOCAL)
            end = tl.where(expert < LOCAL, HIDDEN, 0)
        inside = column < end
        values = tl.load(out + (token * TOP_K + j) * HIDDEN + column, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            row = (part * num_tokens + token) * TOP_K + j
            values += tl.load(out + row * HIDDEN + column, mask=inside, other=0.0)
        if weights is None:
            total += values.to(tl.float32)
        else:
            weighted = tl.load(weights + token * TOP_K + j).to(tl.float32) * values.to(tl.float32)
            total += weighted if LOCAL is None else tl.where(inside, weighted, 0.0)
    tl.store(y + token * HIDDEN + column, total.to(y.dtype.element_ty), mask=column < HIDDEN)


def forward(
    x: torch.Tensor,
    route: Router | Chosen,
    experts: Experts,
    tiles: AnyTiles | None = None,
    invariant: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `fast_moe` and `fast_experts` do where no graph is being traced. Raises TypeError or ValueError."""
    call = describe(x, route, experts, tiles, invariant, out)
    known = known_tiles(call)
    if known is None:
        check_arguments(x, route, experts, tiles, invariant, out)
    y = torch.empty(*x.shape, dtype=x.dtype, device=x.device) if out is None else out
    rows, outputs = _rows(x), y if y.dim() == 2 else y.view(-1, y.shape[-1])
    parts = chunks(rows.shape[0], route.top_k, route.logits_of_token(rows.shape[1], invariant))
    if len(parts) == 1:
        if known is None:
            known = tiles or layer_tiles(rows, route, experts, invariant)
            remember(call, known)
        _forward(rows, route, experts, known, invariant, outputs)
    else:
        for part in parts:
            own = tiles or layer_tiles(rows[part], route, experts, invariant)
            _forward(rows[part], route.of(part), experts, own, invariant, outputs[part])
    return y


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x as [tokens, hidden], each row without gaps; copied only where it has to be."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _forward(x, route, experts, tiles, invariant, y) -> None:
    """What `forward` does with a batch that the kernels take at once, once it is checked."""
    if isinstance(tiles, FewTiles):
        if isinstance(experts.gate_up, FourBits):
            assert isinstance(experts.down, FourBits)
            planes = launch_planes(x, experts.gate_up)
            chosen, weights = route.choose(x)
            packed = experts.gate_up, experts.down
            launch_few_w4(planes, chosen, weights, *packed, tiles, y, experts.epilogue, route.local)
            return
        chosen, weights = route.choose(x)
        launch_few(x, chosen, weights, experts.gate_up, experts.down, tiles, y, experts.epilogue, route.local)
        return
    if isinstance(tiles, JoinedTiles):
        rows, scales = quantized(x, experts) if experts.packed else (x, None)
        chosen, weights, arrivals = route.counted(x)
        outputs = launch_joined(rows, scales, chosen, weights, arrivals, experts, tiles, x.dtype)
        here = Local(experts.num_experts) if isinstance(route, Chosen) else None
        launch_combine(outputs, weights, y, experts.epilogue, chosen if here else None, here)
        return
    rows, scales = quantized(x, experts) if experts.packed else (x, None)
    blocks = route.blocks(x, tiles.block_m, invariant, tiles.one_grid)
    if not experts.packed:
        tiles = tiles.fitting(experts.gate_up, experts.down)
    if tiles.one_grid:
        outputs = launch_one_grid(rows, scales, experts, blocks, route.top_k, tiles, x.dtype)
    elif experts.packed:
        hidden = launch_packed_gate_up(rows, scales, experts, blocks, route.top_k, tiles)
        outputs = launch_packed_down(*hidden, experts, blocks, x.dtype, tiles)
    else:
        inner = launch_gate_up(x, experts.gate_up, blocks, route.top_k, tiles, experts.epilogue)
        outputs = launch_down(inner, experts.down, blocks, tiles, experts.epilogue)
    chosen = route.experts if isinstance(route, Chosen) else None
    launch_combine(outputs, blocks.weights, y, experts.epilogue, chosen, route.local)


def layer_tiles(x: torch.Tensor, route: Router | Chosen, experts: Experts, invariant: bool = False) -> AnyTiles:
    """The tiles that a layer gets for x [tokens, hidden]."""
    shape = (route.num_experts, route.top_k, x.shape[1], experts.ffn)
    if invariant:
        return invariant_packed_tiles(x, experts, shape) if experts.packed else invariant_tiles(x.device, shape)
    tiles = (
        packed_tiles(x, experts, shape)
        if experts.packed
        else choose_tiles(x.device, *shape, x.shape[0], experts.in_tiles)
    )
    if not isinstance(tiles, JoinedTiles) or joinable(route, experts):
        return tiles
    kind = type(experts.gate_up) if isinstance(experts.gate_up, Packed) else None
    return scheduled_tiles(kind, target_of(x.device), shape, x.shape[0])


def combine_tile(tokens: int, hidden: int, on_gpu: bool) -> tuple[int, int]:
    """(columns of a program of the combine, its warps), four columns a thread of NVIDIA's warps.

    Programs of one warp are ahead as long as there are not too many: likely because they find room beside those of the
    GEMM before, which leave few registers, and stand ready when it ends (NOTES, the ninth round).
    """
    if not on_gpu:
        return min(next_power_of_2(hidden), 2**16), 4
    alone = tokens * cdiv(hidden, WARP_COLUMNS) <= MOST_WARPS_ALONE
    columns = min(next_power_of_2(hidden), WARP_COLUMNS if alone else 8 * WARP_COLUMNS)
    return columns, cdiv(columns, WARP_COLUMNS)


def launch_combine(
    out: torch.Tensor,
    weights: torch.Tensor,
    y: torch.Tensor | None = None,
    epilogue: Epilogue = PLAIN,
    experts: torch.Tensor | None = None,
    local: Local | None = None,
) -> torch.Tensor:
    """y [tokens, hidden], written if it is given, else new in the dtype of out, [N, hidden] from `launch_down`, or
    several such parts of it, one behind the other, which add up.

    weights: float32 or 16 bits [tokens, top_k]. experts: ids [tokens, top_k], where `local` says which are here.
    """
    (tokens, top_k), hidden = weights.shape, out.shape[1]
    y = torch.empty(tokens, hidden, dtype=out.dtype, device=out.device) if y is None else y
    block_h, num_warps = combine_tile(tokens, hidden, out.is_cuda)
    expert_map, num_global, here = lookup(local)
    launch(
        _combine_kernel, (tokens, cdiv(hidden, block_h)),
        out, epilogue.for_combine(weights, y.dtype), experts, expert_map, y, tokens, num_global,
        LOCAL=here, TOP_K=top_k, HIDDEN=hidden, PARTS=out.shape[0] // weights.numel(), BLOCK_H=block_h,
        num_warps=num_warps, **launch_options(out.device),
    )  # fmt: skip
    return y
