// Stands in for the header of that name which MAGMA's sources include: the types and helpers that its float32 vbatched
// GEMM uses, without cuBLAS, cuSPARSE and the generated headers of the whole library.
#pragma once

#include <cuComplex.h>
#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// As in MAGMA, whose operands of one call may differ in type.
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) < (b)) ? (b) : (a))

typedef int magma_int_t;
typedef cuDoubleComplex magmaDoubleComplex;
typedef cuFloatComplex magmaFloatComplex;
typedef __half magmaHalf;

#define MAGMA_Z_CONJ(x) cuConj(x)
#define MAGMA_C_CONJ(x) cuConjf(x)

enum magma_trans_t { MagmaNoTrans = 111, MagmaTrans = 112, MagmaConjTrans = 113 };

struct magma_queue {
  cudaStream_t stream;
  cudaStream_t cuda_stream() const { return stream; }
  magma_int_t get_maxBatch() const { return 65535; }  // blocks that a grid takes in its third dimension
};
typedef magma_queue* magma_queue_t;

__host__ __device__ static inline magma_int_t magma_ceildiv(magma_int_t x, magma_int_t y) { return (x + y - 1) / y; }
