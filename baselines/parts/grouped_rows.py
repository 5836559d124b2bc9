"""The rows of a forward around grouped GEMMs, placed on the GPU: [total, width], the groups one behind another.

Each expert's rows begin at a multiple of `align`; `ends` tells where they end. `total` follows from the number of slots
alone, so the host needs no counts, and a CUDA graph can hold the forward. What lies between the groups, and behind the
last, is never read as a result. With quantised rows (e4m3 with one float32 scale per row and 128 columns) scales lie
column by column, as TMA loads them: [width / 128, total] in memory.
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

    rows: int32 [tokens, top_k], the row of each slot; ends: int32 [num_experts], the row behind each expert's last, or
    where its rows would begin; total: rows there is room for.
    """

    rows: torch.Tensor
    ends: torch.Tensor
    total: int


@dataclass(frozen=True)
class Rows:
    """values: [total, width]; scales: float32 [total, width / 128], None for 16-bit values."""

    values: torch.Tensor
    scales: torch.Tensor | None


@triton.jit(do_not_specialize=["num_slots"])
def _place_kernel(
    experts, rows, ends,
    num_slots,
    ALIGN: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per expert counts all slots, and numbers its own in their order: a forward is bitwise repeatable."""
    expert = tl.program_id(0)
    counts = tl.zeros((EXPERTS,), dtype=tl.int32)
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)  # [BLOCK]
        chosen = tl.load(experts + slot, mask=slot < num_slots, other=0)
        counts += tl.histogram(chosen, EXPERTS, mask=slot < num_slots).to(tl.int32)
    index = tl.arange(0, EXPERTS)
    row = tl.sum(tl.where(index < expert, (counts + ALIGN - 1) // ALIGN * ALIGN, 0), 0)
    for start in range(0, num_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        mine = tl.load(experts + slot, mask=slot < num_slots, other=-1) == expert
        tl.store(rows + slot, row + tl.cumsum(mine.to(tl.int32), 0) - 1, mask=mine)
        row += tl.sum(mine.to(tl.int32), 0)
    tl.store(ends + expert, row)


@triton.jit
def _columns(WIDTH: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """(group [GROUPS], column [GROUPS, GROUP]) of the program's second index."""
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    return group, group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def _scatter_kernel(
    x, rows, values, scales,
    total, stride_token,
    WIDTH: tl.constexpr, TOP_K: tl.constexpr, QUANTIZE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program per token and GROUPS groups of columns quantises them once and writes them to its k rows."""
    token = tl.program_id(0)
    group, column = _columns(WIDTH, GROUPS, GROUP)
    inside = column < WIDTH
    row_values = tl.load(x + token.to(tl.int64) * stride_token + column, mask=inside, other=0.0)
    if QUANTIZE:
        row_values, scale = quantize_groups(row_values.to(tl.float32))
    for slot in range(TOP_K):
        row = tl.load(rows + token * TOP_K + slot).to(tl.int64)
        tl.store(values + row * WIDTH + column, row_values, mask=inside)
        if QUANTIZE:
            tl.store(scales + group * total + row, scale, mask=group < WIDTH // GROUP)


@triton.jit
def _silu_kernel(
    gate_up, rows, values, scales,
    total,
    FFN: tl.constexpr, QUANTIZE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program per slot and GROUPS groups of columns: silu(gate) * up of its row, in float32, quantised or not."""
    slot = tl.program_id(0)
    group, column = _columns(FFN, GROUPS, GROUP)
    inside = column < FFN
    row = tl.load(rows + slot).to(tl.int64)
    both = gate_up + row * (2 * FFN) + column
    gate = tl.load(both, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + FFN, mask=inside, other=0.0).to(tl.float32)
    hidden = gate * tl.sigmoid(gate) * up
    if QUANTIZE:
        hidden, scale = quantize_groups(hidden)
        tl.store(scales + group * total + row, scale, mask=group < FFN // GROUP)
    tl.store(values + row * FFN + column, hidden.to(values.dtype.element_ty), mask=inside)


@triton.jit
def _combine_kernel(out, rows, weights, y, WIDTH: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """One program per token and BLOCK columns: the weighted sum of its k rows, in float32."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = column < WIDTH
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for slot in range(TOP_K):
        row = tl.load(rows + token * TOP_K + slot).to(tl.int64)
        part = tl.load(out + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weights + token * TOP_K + slot) * part
    tl.store(y + token.to(tl.int64) * WIDTH + column, total.to(y.dtype.element_ty), mask=inside)


def most_rows(slots: int, num_experts: int, align: int) -> int:
    """Rows that aligned groups of so many slots take at most, whatever the routing."""
    active = min(slots, num_experts)
    return align * (active + (slots - active) // align)


def place(experts: torch.Tensor, num_experts: int, align: int) -> Places:
    """Rows for the slots of int32 `experts` [tokens, top_k]."""
    rows, slots = torch.empty_like(experts), experts.numel()
    ends = torch.empty(num_experts, dtype=torch.int32, device=experts.device)
    _place_kernel[(num_experts,)](
        experts, rows, ends, slots, ALIGN=align, EXPERTS=triton.next_power_of_2(num_experts),
        BLOCK=min(triton.next_power_of_2(slots), 1024),
    )  # fmt: skip
    return Places(rows, ends, most_rows(slots, num_experts, align))


def scatter(x: torch.Tensor, places: Places, quantize: bool) -> Rows:
    """The row of x [tokens, width] of every slot, at its place."""
    (tokens, width), top_k = x.shape, places.rows.shape[1]
    made = _room(places, width, torch.float8_e4m3fn if quantize else x.dtype)
    _scatter_kernel[(tokens, triton.cdiv(width, GROUPS * GROUP))](
        x, places.rows, made.values, made.scales, places.total, x.stride(0),
        WIDTH=width, TOP_K=top_k, QUANTIZE=quantize, GROUPS=GROUPS, GROUP=GROUP,
    )  # fmt: skip
    return made


def silu_rows(gate_up: torch.Tensor, places: Places, quantize: bool) -> Rows:
    """silu(gate) * up of every slot's row of gate_up [total, 2 * ffn], gate first."""
    ffn = gate_up.shape[1] // 2
    made = _room(places, ffn, torch.float8_e4m3fn if quantize else gate_up.dtype)
    _silu_kernel[(places.rows.numel(), triton.cdiv(ffn, GROUPS * GROUP))](
        gate_up, places.rows, made.values, made.scales, places.total,
        FFN=ffn, QUANTIZE=quantize, GROUPS=GROUPS, GROUP=GROUP,
    )  # fmt: skip
    return made


def combine(out: torch.Tensor, places: Places, weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """y [tokens, width] of the experts' outputs [total, width] and float32 weights [tokens, top_k]."""
    (tokens, top_k), width = weights.shape, out.shape[1]
    y = torch.empty((tokens, width), dtype=dtype, device=out.device)
    block = 1024
    _combine_kernel[(tokens, triton.cdiv(width, block))](
        out, places.rows, weights, y, WIDTH=width, TOP_K=top_k, BLOCK=block
    )
    return y


def _room(places: Places, width: int, dtype: torch.dtype) -> Rows:
    values = torch.empty((places.total, width), dtype=dtype, device=places.rows.device)
    if dtype != torch.float8_e4m3fn:
        return Rows(values, None)
    scales = torch.empty((width // GROUP, places.total), dtype=torch.float32, device=values.device)
    return Rows(values, scales.T)
