"""Shapes that a library's kernels cannot multiply."""

from __future__ import annotations

from tritonmoe_bench.experiments.implementation.contract import OK, Case, Check, unsupported

WHOLE_16_BYTES = 8
"""Elements of 16 bits: rows of whole 16 bytes, as TMA, cuBLAS's grouped GEMM and CUTLASS's vector loads need them."""


def divisible(case: Case, divisor: int, why: str) -> Check:
    """`unsupported`, with the reason, unless hidden_dim and ffn_dim are multiples of the divisor."""
    if case.hidden_dim % divisor or case.ffn_dim % divisor:
        return unsupported(
            f"{why}: hidden_dim={case.hidden_dim} and ffn_dim={case.ffn_dim} must be multiples of {divisor}"
        )
    return OK
