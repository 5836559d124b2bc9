"""SiLU(gate) * up, element by element: what the unfused pipeline does between its GEMMs.

gate [N, ffn], up [N, ffn] -> hidden [N, ffn], hidden = gate * sigmoid(gate) * up, float32 inside.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _silu_mul_kernel(gate, up, hidden, num_elements, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = index < num_elements
    g = tl.load(gate + index, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden + index, (g * tl.sigmoid(g) * u).to(hidden.dtype.element_ty), mask=mask)


def launch_silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """hidden [N, ffn] in the dtype of gate; gate, up: float16 or bfloat16 [N, ffn], contiguous."""
    hidden = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    block = 2048 if gate.is_cuda else 2**18
    _silu_mul_kernel[(triton.cdiv(gate.numel(), block),)](gate, up, hidden, gate.numel(), BLOCK=block)
    return hidden
