"""The activation of a SwiGLU layer as a Triton function that OpenAI's triton_kernels fuses into its gate+up GEMM."""

import triton
import triton.language as tl


@triton.jit(repr=lambda _: "_silu_mul")
def silu_mul(pairs):
    """silu(gate) * up, [M, N / 2], of float32 `pairs` [M, N] whose columns are gate 0, up 0, gate 1, up 1, ..."""
    gate, up = tl.split(tl.reshape(pairs, (pairs.shape[0], pairs.shape[1] // 2, 2)))
    return gate / (1 + tl.exp(-gate)) * up
