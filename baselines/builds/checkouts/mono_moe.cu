// FlashInfer's one-launch MoE kernel (csrc/fused_moe/monomoe in its package) behind a C interface, without tvm-ffi.
//
// What FlashInfer's own launcher does before a launch is done here: four TMA descriptors, dynamic shared memory, and a
// grid that has to fit on the GPU at once, because its blocks wait for each other. The caller's scratch memory must be
// zeroed once; the kernel keeps it ready afterwards.

#include <cuda_runtime.h>

#include "tvm_ffi_utils.h"

#include "src/moe.cuh"

using namespace monomoe;
using Shape = Dims_BS8_E256_N512_K2048_BlockFP8_WGMMA_TMA;

enum Status { kOk = 0, kBadArgument = -1, kTooFewMultiprocessors = -2, kDescriptor = -3, kCuda = -4 };

extern "C" long long moe_mono_scratch_bytes() { return sizeof(MoEGemmSpec<Shape>); }

// x, out: bf16 [tokens, 2048]; logits: bf16 [tokens, 256]; gate_up: e4m3 [256, 1024, 2048], gate and up rows in turns
// of 8; down: e4m3 [256, 2048, 512]; scales: float32, one per 128 x 128 weights; softmax: 1, or 0 for sigmoid.
extern "C" int moe_mono_launch(const void* x, const void* logits, const void* gate_up, const void* gate_up_scales,
                               const void* down, const void* down_scales, void* out, void* scratch, int tokens,
                               int top_k, int softmax, int renormalize, void* stream) {
  if (tokens < 1 || tokens > static_cast<int>(Shape::BS) || top_k < 1 || top_k > 8) return kBadArgument;
  int device = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return kCuda;
  if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return kCuda;
  if (multiprocessors < static_cast<int>(Shape::KernelConfig::GRID_SIZE)) return kTooFewMultiprocessors;

  CUtensorMap maps[4];
  try {
    const char* between = static_cast<const char*>(scratch) + MoEGemmSpec<Shape>::TEMP_FP8_OFFSET;
    maps[0] = create_up_weight_tma_desc(gate_up, Shape::NUM_EXPERTS, Shape::N, Shape::K);
    maps[1] = create_activations_tma_desc(x, tokens, Shape::K);
    maps[2] = create_down_weight_tma_desc(down, Shape::NUM_EXPERTS, Shape::K, Shape::N, 128u);
    maps[3] = create_down_activation_tma_desc(between, MoEGemmSpec<Shape>::TEMP_ROWS_TMA, Shape::N);
  } catch (const moe_mono::CheckFailed&) {
    return kDescriptor;
  }

  const size_t shared = get_moe_shmem_size<Shape>();
  auto* kernel = moe_kernel_topk<Shape>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)) !=
      cudaSuccess) {
    return kCuda;
  }
  kernel<<<Shape::KernelConfig::GRID_SIZE, Shape::KernelConfig::BLOCK_SIZE, shared,
           static_cast<cudaStream_t>(stream)>>>(
      static_cast<const A_element*>(x), tokens, static_cast<const __nv_bfloat16*>(logits),
      static_cast<const W_element*>(gate_up), static_cast<const S_element*>(gate_up_scales),
      static_cast<const W_element*>(down), static_cast<const S_element*>(down_scales), static_cast<R_element*>(out),
      scratch, sizeof(MoEGemmSpec<Shape>), shared, top_k, softmax ? ScoringFunc::SOFTMAX : ScoringFunc::SIGMOID,
      renormalize != 0, maps[0], maps[1], maps[2], maps[3]);
  return cudaGetLastError() == cudaSuccess ? kOk : kCuda;
}

// The descriptors' definitions, whose checks the header in checks/ turns into exceptions of ours.
#include "src/moe_tma.cu"
