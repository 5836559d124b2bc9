// MAGMA's float32 batched GEMM of variable sizes (magmablas/sgemm_vbatched_core.cu) behind a C interface.
//
// For every matrix of the batch: out[rows, n] = rows[rows, k] x weights[n, k]^T, row-major, which is in MAGMA's
// column-major terms C (n x rows) = A^T (A is k x n) x B (k x rows). It does what magmablas_sgemm_vbatched_max_nocheck
// does: the caller gives the largest sizes, so that the host does not wait to find them.

#include "sgemm_vbatched_core.cu"

// Arrays of `count` on the GPU: addresses of each matrix, and the sizes of each. max_rows: at least the largest of rows.
extern "C" int moe_magma_sgemm_vbatched(int n_max, int max_rows, int k_max, int* n, int* rows, int* k,
                                        const float* const* weights, const float* const* inward, float** out,
                                        int count, void* stream) {
  magma_queue queue{static_cast<cudaStream_t>(stream)};
  magmablas_sgemm_vbatched_core(MagmaTrans, MagmaNoTrans, n_max, max_rows, k_max, n, rows, k, 1.0f, weights, 0, 0, k,
                                inward, 0, 0, k, 0.0f, out, 0, 0, n, count, &queue);
  return cudaGetLastError();
}
