"""The path of `fast` with a schedule, with both expert GEMMs in one grid, as in joined.py.

The programs of down stand behind all of gate and up, and each waits for those of its own row block alone. So down reads
its first weights while gate and up still read their last, where two launches drain the GPU in between. Blocks, tiles
and ladders are those of gemm.py and gemm_fp8.py; but both GEMMs have the warps and the shared memory of the one that
needs more. What joined.py says of the order of programs holds here too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats.fp8_block import Fp8Block
from ..integers import cdiv
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from . import e4m3
from .blocks import Blocks
from .experts import Experts
from .gemm import _climb, _down_tile, _gate_up_tile, _locate
from .gemm_fp8 import _down_fp8_tile, _gate_up_fp8_tile
from .tile_types import FastTiles
from .tiled import is_tiled, matrices


@triton.jit
def wait_for(arrivals, place, NEEDED: tl.constexpr):
    """Until so many programs have counted themselves at a place: what they stored before is then there."""
    while tl.atomic_add(arrivals + place, 0, sem="acquire") < NEEDED:
        pass


@triton.jit
def count(arrivals, place):
    """Counts this program, once all its threads have stored."""
    tl.debug_barrier()
    tl.atomic_add(arrivals + place, 1, sem="release")


@triton.jit(do_not_specialize=["num_blocks"])
def _one_grid_kernel(
    # operands
    x, x_scales, gate_up, gate_up_scales, gate_up_bias, hidden, hidden_scales, down, down_scales, down_bias, out,
    # schedule
    order, gate_up_weights, down_weights, table, arrivals, num_blocks,
    # shape
    stride_token, TOP_K: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    TILED: tl.constexpr,
    # tiles
    UP_N: tl.constexpr, UP_BULK: tl.constexpr, UP_LADDER: tl.constexpr,
    DOWN_N: tl.constexpr, DOWN_BULK: tl.constexpr, DOWN_LADDER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    COLUMNS: tl.constexpr = (FFN + UP_N - 1) // UP_N
    task = tl.program_id(0)
    first = num_blocks * COLUMNS
    if task < first:
        expert, row, rows, column, block = _locate(table, num_blocks, COLUMNS, task)
        if rows > 0:
            if gate_up_scales is None:
                arguments = (x, gate_up, gate_up_bias, hidden, order, gate_up_weights, expert, row, rows, column,
                             stride_token)  # fmt: skip
                _climb(_gate_up_tile, arguments, rows, (TOP_K, FFN, K, ACTIVATION, UP_N, UP_BULK, TILED), UP_LADDER)
            else:
                scaled = (x, x_scales, gate_up, gate_up_scales, gate_up_bias, hidden, hidden_scales, stride_token,
                          order, gate_up_weights, expert, row, rows, column)  # fmt: skip
                _climb(_gate_up_fp8_tile, scaled, rows, (TOP_K, FFN, K, ACTIVATION, UP_N), UP_LADDER)
            count(arrivals, block)
    else:
        expert, row, rows, column, block = _locate(table, num_blocks, tl.cdiv(K, DOWN_N), task - first)
        if rows > 0:
            wait_for(arrivals, block, COLUMNS)
            if down_scales is None:
                plain = (hidden, down, down_bias, out, order, down_weights, expert, row, rows, column)
                _climb(_down_tile, plain, rows, (K, FFN, DOWN_N, DOWN_BULK, TILED), DOWN_LADDER)
            else:
                packed = (hidden, hidden_scales, down, down_scales, down_bias, out, order, down_weights,
                          expert, row, rows, column)  # fmt: skip
                _climb(_down_fp8_tile, packed, rows, (K, FFN, DOWN_N), DOWN_LADDER)


def launch_one_grid(
    x: torch.Tensor,
    x_scales: torch.Tensor | None,
    experts: Experts,
    blocks: Blocks,
    top_k: int,
    tiles: FastTiles,
    dtype: torch.dtype,
) -> torch.Tensor:
    """out [N, hidden] in slot order, of that dtype, as far as `Epilogue.for_down` weighted by the routing.

    x: 16 bits [tokens, hidden], or e4m3 with x_scales float32 [tokens, hidden / 128] over fp8_block. blocks: with
    arrivals, which it uses up.
    """
    gate_up, down, epilogue = experts.gate_up, experts.down, experts.epilogue
    up, back, (_, both, k), device = tiles.gate_up, tiles.down, matrices(gate_up), x.device
    ffn, slots, num_blocks = both // 2, x.shape[0] * top_k, blocks.table.shape[1]
    hidden = torch.empty(slots, ffn, dtype=x.dtype, device=device)
    scales = None if x_scales is None else torch.empty(slots, ffn // up.block_n, dtype=torch.float32, device=device)
    out = torch.empty(slots, k, dtype=dtype, device=device)
    if isinstance(gate_up, Fp8Block) and isinstance(down, Fp8Block):
        inward, outward = e4m3.operands(gate_up), e4m3.operands(down)
        x_scales, scales = (gate_up.scales, down.scales) if x_scales is None else (x_scales, scales)
    else:
        assert isinstance(gate_up, torch.Tensor)
        assert isinstance(down, torch.Tensor)
        inward, outward = (up.operand(gate_up, 2), None), (back.operand(down), None)
    launch(
        _one_grid_kernel, (num_blocks * (cdiv(ffn, up.block_n) + cdiv(k, back.block_n)),),
        x, x_scales, *inward, epilogue.gate_up_bias, hidden, scales, *outward, epilogue.down_bias, out,
        blocks.order, epilogue.for_gate_up(blocks.weights), epilogue.for_down(blocks.weights, dtype),
        blocks.table, blocks.arrivals, num_blocks, x.stride(0),
        TOP_K=top_k, FFN=ffn, K=k, ACTIVATION=epilogue.constants, TILED=is_tiled(gate_up),
        UP_N=up.block_n, UP_BULK=up.bulk, UP_LADDER=tiles.ladder(up),
        DOWN_N=back.block_n, DOWN_BULK=back.bulk, DOWN_LADDER=tiles.ladder(back),
        num_warps=up.num_warps, **launch_options(device),
    )  # fmt: skip
    return out
