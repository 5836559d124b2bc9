"""SiLU(gate) * up where gate and up lie side by side, as one GEMM with both weights leaves them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _silu_gate_kernel(gate_up, hidden, FFN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = column < FFN
    gate = tl.load(gate_up + row * 2 * FFN + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * FFN + FFN + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden + row * FFN + column, (gate * tl.sigmoid(gate) * up).to(hidden.dtype.element_ty), mask=mask)


def silu_gate(gate_up: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Writes and returns hidden [N, ffn] of gate_up [N, 2 * ffn], contiguous, of one dtype; float32 inside."""
    num_rows, ffn = hidden.shape
    block = min(triton.next_power_of_2(ffn), 2048 if hidden.is_cuda else 2**16)
    _silu_gate_kernel[(num_rows, triton.cdiv(ffn, block))](gate_up, hidden, FFN=ffn, BLOCK=block)
    return hidden


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu_gate` into a new tensor."""
    return silu_gate(gate_up, gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2)))
