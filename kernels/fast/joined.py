"""The joined path of `fast`, for up to 32 tokens: both expert GEMMs in one grid, and no schedule.

A program owns an expert and a column of tiles, and finds the expert's tokens in the choices themselves: a token has an
expert once, so a tile has a row for each token of the batch. The programs of down stand behind all of gate and up in
the grid. One of them waits until those of its expert have counted themselves, so that down reads its first weights
while gate and up still read their last, where two launches would drain the GPU in between.

No program of gate and up waits, and a GPU starts programs in the order of their numbers: whatever a program waits for
has been started before it, and ends. N = tokens * top_k slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..formats import Packed
from ..formats.four_bits import FourBits
from ..formats.fp8_block import Fp8Block
from ..integers import cdiv, next_power_of_2
from ..launch import launch
from ..pdl import launch_options, release_next, wait_for_previous
from . import e4m3, w4
from .e4m3 import GROUP
from .epilogue import activate_both, add_bias, store
from .experts import Experts
from .gemm import _product
from .gemm_fp8 import _scaled_product, store_hidden
from .gemm_w4 import _unpacked_product, store_permuted
from .local import Local, expert_of, lookup
from .one_grid import count, wait_for
from .tile_types import JoinedTiles
from .tiled import along, is_tiled, matrices
from .w4 import constants, padded


@triton.jit(do_not_specialize=["num_global"])
def _own_kernel(
    experts, expert_map, weights, own, own_weights, arrivals, num_global,
    TOP_K: tl.constexpr, CHOICES: tl.constexpr, LOCAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """own [tokens, top_k]: the expert here of each slot, LOCAL where there is none; own_weights: its weight.

    Of slots of a token with the same expert, the first has all their weight, and the others have no expert. A program a
    token; it sets its part of arrivals [N] to 0.
    """
    wait_for_previous(PDL)
    release_next(PDL)
    token = tl.program_id(0)
    choice = tl.arange(0, CHOICES)  # [CHOICES]
    slot = token * TOP_K + choice
    there = choice < TOP_K
    expert = expert_of(experts, expert_map, num_global, slot, there, LOCAL)
    weight = tl.load(weights + slot, mask=there, other=0.0).to(tl.float32)
    same = (expert[:, None] == expert[None, :]) & (expert < LOCAL)[:, None]  # [CHOICES, CHOICES]
    first = tl.sum((same & (choice[None, :] < choice[:, None])).to(tl.int32), axis=1) == 0
    total = tl.sum(tl.where(same, weight[None, :], 0.0), axis=1)
    tl.store(own + slot, tl.where(first, expert, LOCAL), mask=there)
    tl.store(own_weights + slot, tl.where(first, total, 0.0), mask=there)
    tl.store(arrivals + slot, tl.zeros_like(expert), mask=there)


def launch_own(
    experts: torch.Tensor, weights: torch.Tensor, local: Local
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(experts int32, weights float32, arrivals int32 of zeros), each [tokens, top_k], of routing that a caller has
    done; experts: any ids, of which `local` says which are here."""
    tokens, top_k = experts.shape
    own, arrivals = (torch.empty(tokens, top_k, dtype=torch.int32, device=experts.device) for _ in range(2))
    own_weights = torch.empty(tokens, top_k, dtype=torch.float32, device=experts.device)
    expert_map, num_global, here = lookup(local)
    launch(
        _own_kernel, (tokens,), experts, expert_map, weights, own, own_weights, arrivals, num_global,
        TOP_K=top_k, CHOICES=max(next_power_of_2(top_k), 2), LOCAL=here, num_warps=1, **launch_options(experts.device),
    )  # fmt: skip
    return own, own_weights, arrivals


@triton.jit
def _members(
    experts, place, tokens,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, CHOICES: tl.constexpr, HEIGHT: tl.constexpr,
    BY_EXPERT: tl.constexpr,
):  # fmt: skip
    """(expert, the slot that each token has it in, whether it has it, whether a program of this place has work).

    place: an expert; or a slot, for whose expert it stands if no earlier token has that. Slots are [HEIGHT].
    """
    token = tl.arange(0, HEIGHT)  # [HEIGHT]
    choice = tl.arange(0, CHOICES)  # [CHOICES]
    there = (token < tokens)[:, None] & (choice < TOP_K)[None, :]
    chosen = tl.load(experts + token[:, None] * TOP_K + choice[None, :], mask=there, other=-1)  # [HEIGHT, CHOICES]
    expert = place if BY_EXPERT else tl.load(experts + place)
    matches = chosen == expert
    has = tl.sum(matches.to(tl.int32), axis=1) > 0  # [HEIGHT]
    slot = token * TOP_K + tl.sum(tl.where(matches, choice[None, :], 0), axis=1)  # [HEIGHT]
    if BY_EXPERT:
        serves = tl.sum(has.to(tl.int32), axis=0) > 0
    else:
        serves = (expert < NUM_EXPERTS) & (tl.sum((has & (token < place // TOP_K)).to(tl.int32), axis=0) == 0)
    return expert, slot, has, serves


@triton.jit
def _weighted(values, weights, slot, has):
    """values [rows, columns] times the weights of their slots, if there are weights."""
    if weights is None:
        return values
    else:
        return values * tl.load(weights + slot, mask=has, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _joined_gate_up(
    x, x_scales, gate_up, scales, bias, weights, hidden, hidden_scales, experts, arrivals, stride_token, tokens, task,
    COLUMNS: tl.constexpr, FFN: tl.constexpr, K: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    CHOICES: tl.constexpr, BY_EXPERT: tl.constexpr, FORMAT: tl.constexpr, TILED: tl.constexpr,
    ACTIVATION: tl.constexpr, HEIGHT: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """hidden[slot] = act(gate, up) of an expert's slots, one column of tiles; then counts it for the expert's place."""
    place = task // COLUMNS
    column = task % COLUMNS
    expert, slot, has, serves = _members(experts, place, tokens, NUM_EXPERTS, TOP_K, CHOICES, HEIGHT, BY_EXPERT)
    if serves:
        token = tl.arange(0, HEIGHT).to(tl.int64)
        a = x + token * stride_token
        if scales is None:
            both, _ = _product(a, a, has, has, gate_up, expert, column, FFN, K, 2,
                               HEIGHT, 0, BLOCK_N, STEP, STAGES, True, False, TILED, K)  # fmt: skip
        elif FORMAT is not None:
            lane = tl.arange(0, 2 * BLOCK_N)  # [2 * BLOCK_N]
            n = column * BLOCK_N + lane % BLOCK_N
            both, _ = _unpacked_product(
                a, has, a, has, gate_up, scales, expert * 2 + lane // BLOCK_N, n, n < FFN, FFN, K, FFN % 128 == 0,
                FORMAT[0], FORMAT[1], FORMAT[2], HEIGHT, 0, 2 * BLOCK_N, STEP, STAGES, True,
            )  # fmt: skip
        else:
            a_scales = x_scales + token * (K // 128)
            both, _ = _scaled_product(a, a_scales, has, a, a_scales, has, gate_up, scales, expert, column, FFN, K, 2,
                                      HEIGHT, 0, BLOCK_N, STEP, STAGES, True)  # fmt: skip
        both = add_bias(_weighted(both, weights, slot, has), bias, expert, column, FFN, 2, BLOCK_N)
        inner = activate_both(both, HEIGHT, BLOCK_N, ACTIVATION)
        if FORMAT is not None:
            store_permuted(hidden, slot, has, inner, column, FFN, BLOCK_N)
        else:
            store_hidden(hidden, hidden_scales, slot, has, inner, column, FFN, BLOCK_N)
        count(arrivals, place)


@triton.jit
def _joined_down(
    hidden, hidden_scales, down, scales, bias, weights, out, experts, arrivals, tokens, task,
    NEEDED: tl.constexpr, N: tl.constexpr, K: tl.constexpr, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr,
    CHOICES: tl.constexpr, BY_EXPERT: tl.constexpr, FORMAT: tl.constexpr, TILED: tl.constexpr,
    HEIGHT: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out[part, slot] = down @ hidden[slot] of an expert's slots, one column of tiles and one part of the sum, once so
    many columns of hidden are counted."""
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    place = task // (columns * SPLITS)
    column = task // SPLITS % columns
    first = task % SPLITS * (K // SPLITS)  # of this part of the sum
    expert, slot, has, serves = _members(experts, place, tokens, NUM_EXPERTS, TOP_K, CHOICES, HEIGHT, BY_EXPERT)
    if serves:
        wait_for(arrivals, place, NEEDED)
        row = slot.to(tl.int64)
        a = hidden + row * (K if FORMAT is None else (K + 127) // 128 * 128)
        if scales is None:
            total, _ = _product(a + first, a + first, has, has, down + along(first, TILED), expert, column, N, K, 1,
                                HEIGHT, 0, BLOCK_N, STEP, STAGES, True, False, TILED, K // SPLITS)  # fmt: skip
        elif FORMAT is not None:
            n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
            total, _ = _unpacked_product(
                a, has, a, has, down, scales, expert + tl.zeros_like(n), n, n < N, N, K, N % BLOCK_N == 0,
                FORMAT[0], FORMAT[1], FORMAT[2], HEIGHT, 0, BLOCK_N, STEP, STAGES, True,
            )  # fmt: skip
        else:
            a_scales = hidden_scales + row * (K // 128)
            total, _ = _scaled_product(a, a_scales, has, a, a_scales, has, down, scales, expert, column, N, K, 1,
                                       HEIGHT, 0, BLOCK_N, STEP, STAGES, True)  # fmt: skip
        biased = add_bias(total, bias, expert, column, N, 1, BLOCK_N)
        total = biased if SPLITS == 1 else tl.where(first == 0, biased, total)
        part = (task % SPLITS).to(tl.int64) * tokens * (TOP_K * N)
        store(out + part, slot, has, _weighted(total, weights, slot, has), column, N, BLOCK_N)


@triton.jit(do_not_specialize=["tokens", "places"])
def _joined_kernel(
    # operands
    x, x_scales, gate_up, gate_up_scales, gate_up_bias, hidden, hidden_scales, down, down_scales, down_bias, out,
    # routing
    experts, gate_up_weights, down_weights, arrivals, stride_token, tokens, places,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, CHOICES: tl.constexpr, BY_EXPERT: tl.constexpr,
    # shape
    FFN: tl.constexpr, K: tl.constexpr, UP_FORMAT: tl.constexpr, DOWN_FORMAT: tl.constexpr, TILED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    # tiles
    HEIGHT: tl.constexpr, UP_N: tl.constexpr, UP_STEP: tl.constexpr, UP_STAGES: tl.constexpr,
    DOWN_N: tl.constexpr, DOWN_STEP: tl.constexpr, DOWN_STAGES: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    release_next(PDL)
    WIDTH: tl.constexpr = FFN if UP_FORMAT is None else (FFN + 127) // 128 * 128
    COLUMNS: tl.constexpr = (WIDTH + UP_N - 1) // UP_N
    task = tl.program_id(0)
    first = places * COLUMNS
    if task < first:
        _joined_gate_up(
            x, x_scales, gate_up, gate_up_scales, gate_up_bias, gate_up_weights, hidden, hidden_scales, experts,
            arrivals, stride_token, tokens, task, COLUMNS, FFN, K, NUM_EXPERTS, TOP_K, CHOICES, BY_EXPERT, UP_FORMAT,
            TILED, ACTIVATION, HEIGHT, UP_N, UP_STEP, UP_STAGES,
        )  # fmt: skip
    else:
        _joined_down(
            hidden, hidden_scales, down, down_scales, down_bias, down_weights, out, experts, arrivals, tokens,
            task - first, COLUMNS, K, FFN, NUM_EXPERTS, TOP_K, CHOICES, BY_EXPERT, DOWN_FORMAT,
            TILED, HEIGHT, DOWN_N, DOWN_STEP, DOWN_STAGES, SPLITS,
        )  # fmt: skip


def launch_joined(
    x: torch.Tensor,
    x_scales: torch.Tensor | None,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    arrivals: torch.Tensor,
    experts: Experts,
    tiles: JoinedTiles,
    dtype: torch.dtype,
) -> torch.Tensor:
    """out [N, hidden] in slot order, of that dtype, as far as `Epilogue.for_down` weighted by the routing; where tiles
    split the sums of down, [splits * N, hidden] in float32, the parts one behind the other.

    x: 16 bits [tokens, hidden], over four bits as `launch_permute` gives it; or e4m3 with x_scales float32 [tokens,
    hidden / 128] over fp8_block. chosen: int32 [tokens, top_k], each expert once a token, num_experts where there is
    none; weights: the same shape. arrivals: int32 [N], zeros, which it uses up.
    """
    gate_up, down, epilogue = experts.gate_up, experts.down, experts.epilogue
    (tokens, top_k), slots, (num_experts, both, k) = chosen.shape, chosen.numel(), matrices(gate_up)
    ffn = both // 2
    by_expert = slots > num_experts
    places = num_experts if by_expert else slots
    width = padded(ffn) if isinstance(gate_up, FourBits) else ffn
    hidden = torch.empty(slots, width, dtype=x.dtype, device=x.device)
    scales = None if x_scales is None else torch.empty(slots, ffn // GROUP, dtype=torch.float32, device=x.device)
    up, back, splits = tiles.gate_up, tiles.down, tiles.splits
    out = torch.empty(splits * slots, k, dtype=torch.float32 if splits > 1 else dtype, device=x.device)
    launch(
        _joined_kernel, (places * (cdiv(width, up.block_n) + cdiv(k, back.block_n) * splits),),
        x, x_scales, *_operands(gate_up), epilogue.gate_up_bias, hidden, scales,
        *_operands(down), epilogue.down_bias, out,
        chosen, epilogue.for_gate_up(weights), epilogue.for_down(weights, dtype), arrivals, x.stride(0), tokens, places,
        NUM_EXPERTS=num_experts, TOP_K=top_k, CHOICES=next_power_of_2(top_k), BY_EXPERT=by_expert,
        FFN=ffn, K=k, UP_FORMAT=_format(gate_up), DOWN_FORMAT=_format(down), TILED=is_tiled(gate_up),
        ACTIVATION=epilogue.constants,
        HEIGHT=16 if tokens <= 16 else 32,
        UP_N=up.block_n, UP_STEP=up.step, UP_STAGES=up.stages,
        DOWN_N=back.block_n, DOWN_STEP=back.step, DOWN_STAGES=back.stages, SPLITS=splits,
        num_warps=tiles.num_warps, **launch_options(x.device),
    )  # fmt: skip
    return out


def _format(weights: torch.Tensor | Packed) -> tuple[int, ...] | None:
    """GROUP, PREPARED and PTX of weights of four bits (`w4.constants`); None for others."""
    return tuple(constants(weights).values()) if isinstance(weights, FourBits) else None


def _operands(weights: torch.Tensor | Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What kernels take for weights: (values, scales), no scales for 16 bits."""
    if isinstance(weights, FourBits):
        return w4.operands(weights)
    assert isinstance(weights, torch.Tensor | Fp8Block)
    return e4m3.operands(weights)
