"""What follows the products of both expert GEMMs of `fast`: biases, activation, routing weights, and the stores."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import torch
import triton
import triton.language as tl

from ..activation import Activation
from ..weighting import weighted_by_down

Constants: TypeAlias = "tuple[bool, float, float, float] | None"


@dataclass(frozen=True)
class Epilogue:
    """What the experts do beside their products, which are float32 until all of it is done.

    gate_up_bias [num_experts, 2 * ffn], gate then up, is added before the activation; down_bias [num_experts, hidden]
    before the routing weight. weights_on_input: the routing weight multiplies what gate and up take instead of what
    down gives; products of gate and up are scaled by it, which rounds less than scaling x.
    """

    activation: Activation = Activation()
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    weights_on_input: bool = False

    @property
    def constants(self) -> Constants:
        """The activation as the kernels take it: whether it is GELU, alpha, shift, limit; None for plain SiLU."""
        return _constants(self.activation)

    def for_gate_up(self, weights: torch.Tensor) -> torch.Tensor | None:
        """The routing weights, if gate and up multiply by them."""
        return weights if self.weights_on_input else None

    def for_down(self, weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The routing weights, if down multiplies by them; dtype: of its outputs."""
        return weights if weighted_by_down(dtype) and not self.weights_on_input else None

    def for_combine(self, weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The routing weights, if the pass that sums multiplies by them."""
        return None if weighted_by_down(dtype) or self.weights_on_input else weights


@functools.cache
def _constants(activation: Activation) -> Constants:
    a = activation
    return None if a == Activation() else (a.function == "gelu_tanh", a.alpha, a.shift, a.limit or 0.0)


PLAIN = Epilogue()


@triton.jit
def activate(gate, up, ACTIVATION: tl.constexpr):
    """f(gate) * (up + shift) of float32 values. ACTIVATION: as in `Epilogue.constants`."""
    if ACTIVATION is None:
        return gate * tl.sigmoid(gate) * up
    else:
        GELU: tl.constexpr = ACTIVATION[0]
        LIMIT: tl.constexpr = ACTIVATION[3]
        if LIMIT > 0:  # by comparisons that a NaN passes unchanged
            gate = tl.where(gate > LIMIT, LIMIT, gate)
            up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
        if GELU:
            # 0.5 g (1 + tanh(z)) is g sigmoid(2 z) with z = sqrt(2 / pi) (g + 0.044715 g^3).
            gate *= tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
        else:
            gate *= tl.sigmoid(ACTIVATION[1] * gate)
        return gate * (up + ACTIVATION[2])


@triton.jit
def activate_both(both, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr):
    """`activate` of both side by side: [ROWS, 2 * BLOCK_N] -> [ROWS, BLOCK_N]."""
    gate, up = tl.split(tl.permute(tl.reshape(both, (ROWS, 2, BLOCK_N)), (0, 2, 1)))
    return activate(gate, up, ACTIVATION)


@triton.jit
def add_bias(values, bias, expert, column, N: tl.constexpr, MATRICES: tl.constexpr, BLOCK_N: tl.constexpr):
    """values [rows, MATRICES * BLOCK_N] of a column of tiles, plus the bias [experts * MATRICES, N] if there is one."""
    if bias is None:
        return values
    else:
        lane = tl.arange(0, MATRICES * BLOCK_N)  # [MATRICES * BLOCK_N]
        n = column * BLOCK_N + lane % BLOCK_N
        place = bias + (expert * MATRICES + lane // BLOCK_N) * N + n
        return values + tl.load(place, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def scale_rows(values, weights, order, m, in_rows):
    """values [rows, columns] times the weights of their slots order[m], if there are weights."""
    if weights is None:
        return values
    else:
        slot = tl.load(order + m, mask=in_rows, other=0)
        return values * tl.load(weights + slot, mask=in_rows, other=0.0).to(tl.float32)[:, None]


@triton.jit
def inner_of(
    both, order, weights, bias, m, in_rows, expert, column,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """What passes to down, float32 [ROWS, BLOCK_N], of the products of gate and up, [ROWS, 2 * BLOCK_N]."""
    both = scale_rows(both, weights, order, m, in_rows)
    return activate_both(add_bias(both, bias, expert, column, N, 2, BLOCK_N), ROWS, BLOCK_N, ACTIVATION)


@triton.jit
def store(out, row, in_rows, values, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Writes values [rows, BLOCK_N] into their rows of a column of tiles of out [slots, N]."""
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    place = out + (row.to(tl.int64) * N)[:, None] + n[None, :]
    inside = in_rows[:, None] & (n < N)[None, :]
    tl.store(place, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def scatter(out, order, weights, bias, m, in_rows, values, expert, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Writes values [rows, BLOCK_N] of down to their slots order[m], with the bias and the weights that there are."""
    slot = tl.load(order + m, mask=in_rows, other=0)
    values = add_bias(values, bias, expert, column, N, 1, BLOCK_N)
    if weights is not None:
        values *= tl.load(weights + slot, mask=in_rows, other=0.0).to(tl.float32)[:, None]
    store(out, slot, in_rows, values, column, N, BLOCK_N)
