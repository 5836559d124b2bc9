"""`magma_vbatched`: MAGMA's batched GEMM of variable sizes. The paper's sources name it; its row says why not.

MAGMA has `magmablas_{s,d,c,z}gemm_vbatched`, float32 and float64, real and complex. Its one 16-bit batched GEMM,
`magmablas_hgemm_batched`, has one size for all matrices, and there is none for bfloat16.
"""

from __future__ import annotations

from tritonmoe_bench.experiments.implementation.contract import (
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unsupported,
)


class MagmaVbatched(Implementation):
    name = "magma_vbatched"
    family = "library"
    source = "MAGMA, magmablas_{s,d,c,z}gemm_vbatched"

    def version(self) -> str:
        return ""

    def check(self, case: Case) -> Check:
        return unsupported(
            f"MAGMA has no variable-size batched GEMM in {case.dtype}: its vbatched GEMMs are float32, float64 and "
            "complex, and its one 16-bit batched GEMM (fp16) takes one size for all experts"
        )

    def build(self, case: Case, weights: Weights) -> Forward:
        raise NotImplementedError(self.check(case).reason)
