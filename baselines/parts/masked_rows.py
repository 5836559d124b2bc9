"""A forward around grouped GEMMs of the masked layout: rows [experts, capacity, width], counts [experts].

Each expert has room for `capacity` rows, and its own lie at the front; what lies behind them is never read as a result.
So the host needs no counts, and a CUDA graph can hold the forward. With quantised rows (e4m3 with one float32 scale
per row and 128 columns) scales lie column by column, as TMA loads them: [experts, width / 128, capacity] in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonmoe_bench.kernels.fast.e4m3 import quantize_groups

GROUP = 128
"""Columns of a row that share a scale."""
GROUPS = 8
"""Groups of one program: 1024 columns."""


@dataclass(frozen=True)
class Places:
    """Where the slots (token-expert pairs) of a forward lie.

    experts: int32 [tokens, top_k]; rows: int32 [tokens, top_k], the row within the expert's room; counts: int32
    [num_experts]; capacity: rows of room per expert.
    """

    experts: torch.Tensor
    rows: torch.Tensor
    counts: torch.Tensor
    capacity: int


@dataclass(frozen=True)
class Rows:
    """values: [experts, capacity, width]; scales: float32 [experts, capacity, width / 128], None for 16-bit values."""

    values: torch.Tensor
    scales: torch.Tensor | None


@triton.jit(do_not_specialize=["num_slots"])
def _place_kernel(experts, rows, counts, num_slots, BLOCK: tl.constexpr):
    """One program per expert numbers its slots in their order, so that a forward is bitwise repeatable."""
    expert = tl.program_id(0)
    before = 0
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)  # [BLOCK]
        mine = tl.load(experts + slot, mask=slot < num_slots, other=-1) == expert
        tl.store(rows + slot, before + tl.cumsum(mine.to(tl.int32), 0) - 1, mask=mine)
        before += tl.sum(mine.to(tl.int32), 0)
    tl.store(counts + expert, before)


@triton.jit
def _columns(WIDTH: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """(group [GROUPS], column [GROUPS, GROUP]) of the program's second index."""
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    return group, group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def _scatter_kernel(
    x, experts, rows, values, scales,
    capacity, stride_token,
    WIDTH: tl.constexpr, TOP_K: tl.constexpr, QUANTIZE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program per token and GROUPS groups of columns quantises them once and writes them to the k experts."""
    token = tl.program_id(0)
    group, column = _columns(WIDTH, GROUPS, GROUP)
    inside = column < WIDTH
    row_values = tl.load(x + token.to(tl.int64) * stride_token + column, mask=inside, other=0.0)
    if QUANTIZE:
        row_values, scale = quantize_groups(row_values.to(tl.float32))
    for slot in range(TOP_K):
        expert = tl.load(experts + token * TOP_K + slot).to(tl.int64)
        row = tl.load(rows + token * TOP_K + slot)
        tl.store(values + (expert * capacity + row) * WIDTH + column, row_values, mask=inside)
        if QUANTIZE:
            tl.store(scales + (expert * (WIDTH // GROUP) + group) * capacity + row, scale, mask=group < WIDTH // GROUP)


@triton.jit
def _silu_kernel(
    gate_up, experts, rows, values, scales,
    capacity,
    FFN: tl.constexpr, QUANTIZE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program per slot and GROUPS groups of columns: silu(gate) * up of its row, in float32, quantised or not."""
    slot = tl.program_id(0)
    group, column = _columns(FFN, GROUPS, GROUP)
    inside = column < FFN
    expert, row = tl.load(experts + slot).to(tl.int64), tl.load(rows + slot)
    both = gate_up + (expert * capacity + row) * (2 * FFN) + column
    gate = tl.load(both, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + FFN, mask=inside, other=0.0).to(tl.float32)
    hidden = gate * tl.sigmoid(gate) * up
    place = values + (expert * capacity + row) * FFN + column
    if QUANTIZE:
        quantized, scale = quantize_groups(hidden)
        tl.store(place, quantized, mask=inside)
        tl.store(scales + (expert * (FFN // GROUP) + group) * capacity + row, scale, mask=group < FFN // GROUP)
    else:
        tl.store(place, hidden.to(values.dtype.element_ty), mask=inside)


@triton.jit
def _combine_kernel(out, experts, rows, weights, y, capacity, WIDTH: tl.constexpr, TOP_K: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """One program per token and BLOCK columns: the weighted sum of its k rows, in float32."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = column < WIDTH
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for slot in range(TOP_K):
        expert = tl.load(experts + token * TOP_K + slot).to(tl.int64)
        row = tl.load(rows + token * TOP_K + slot)
        part = tl.load(out + (expert * capacity + row) * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weights + token * TOP_K + slot) * part
    tl.store(y + token.to(tl.int64) * WIDTH + column, total.to(y.dtype.element_ty), mask=inside)


def place(experts: torch.Tensor, num_experts: int, capacity: int) -> Places:
    """Rows for the slots of int32 `experts` [tokens, top_k]; capacity: at least the largest load."""
    rows = torch.empty_like(experts)
    counts = torch.empty(num_experts, dtype=torch.int32, device=experts.device)
    block = min(triton.next_power_of_2(experts.numel()), 1024)
    _place_kernel[(num_experts,)](experts, rows, counts, experts.numel(), BLOCK=block)
    return Places(experts, rows, counts, capacity)


def scatter(x: torch.Tensor, places: Places, quantize: bool) -> Rows:
    """The row of x [tokens, width] of every slot, at its place."""
    (tokens, width), top_k = x.shape, places.experts.shape[1]
    made = _room(places, width, torch.float8_e4m3fn if quantize else x.dtype)
    _scatter_kernel[(tokens, triton.cdiv(width, GROUPS * GROUP))](
        x, places.experts, places.rows, made.values, made.scales, places.capacity, x.stride(0),
        WIDTH=width, TOP_K=top_k, QUANTIZE=quantize, GROUPS=GROUPS, GROUP=GROUP,
    )  # fmt: skip
    return made


def silu_rows(gate_up: torch.Tensor, places: Places, quantize: bool) -> Rows:
    """silu(gate) * up of every slot's row of gate_up [experts, capacity, 2 * ffn], gate first."""
    ffn = gate_up.shape[2] // 2
    made = _room(places, ffn, torch.float8_e4m3fn if quantize else gate_up.dtype)
    _silu_kernel[(places.experts.numel(), triton.cdiv(ffn, GROUPS * GROUP))](
        gate_up, places.experts, places.rows, made.values, made.scales, places.capacity,
        FFN=ffn, QUANTIZE=quantize, GROUPS=GROUPS, GROUP=GROUP,
    )  # fmt: skip
    return made


def combine(out: torch.Tensor, places: Places, weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """y [tokens, width] of the experts' outputs [experts, capacity, width] and float32 weights [tokens, top_k]."""
    (tokens, top_k), width = weights.shape, out.shape[2]
    y = torch.empty((tokens, width), dtype=dtype, device=out.device)
    block = 1024
    _combine_kernel[(tokens, triton.cdiv(width, block))](
        out, places.experts, places.rows, weights, y, places.capacity, WIDTH=width, TOP_K=top_k, BLOCK=block
    )
    return y


def _room(places: Places, width: int, dtype: torch.dtype) -> Rows:
    (num_experts,), device = places.counts.shape, places.counts.device
    values = torch.empty((num_experts, places.capacity, width), dtype=dtype, device=device)
    if dtype != torch.float8_e4m3fn:
        return Rows(values, None)
    scales = torch.empty((num_experts, width // GROUP, places.capacity), dtype=torch.float32, device=device)
    return Rows(values, scales.transpose(1, 2))
