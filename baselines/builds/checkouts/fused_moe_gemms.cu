// FlashInfer's grouped GEMMs for fused_moe.cu, without kernels that a SwiGLU layer on Hopper never runs: those for
// Turing and those with other activations, which FlashInfer's own file compiles for Hopper as well.

#include "moe_gemm_template_dispatch.h"

namespace tensorrt_llm::kernels::cutlass_kernels_oss {

template <cutlass::WeightOnlyQuantOp Quant, typename Epilogue, typename Block, typename Warp, int stages>
struct genericMoeGemmKernelLauncher<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16, cutlass::arch::Sm75, Quant, Epilogue,
                                    Block, Warp, stages> {
  static void call(GroupedGemmInput<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16>, int) {
    TLLM_THROW("kernels for Turing were left out");
  }
};

}  // namespace tensorrt_llm::kernels::cutlass_kernels_oss

namespace tensorrt_llm::kernels::cutlass_kernels {

using Runner = MoeGemmRunner<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>;
using Input = GroupedGemmInput<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16>;

#define LEFT_OUT(EPILOGUE)                                                                                \
  template <>                                                                                             \
  template <>                                                                                             \
  void Runner::runGemm<cutlass_extensions::EPILOGUE>(Input, TmaWarpSpecializedGroupedGemmInput) {         \
    TLLM_THROW("kernels with other activations than SwiGLU were left out");                               \
  }

LEFT_OUT(EpilogueOpDefaultReLU)
LEFT_OUT(EpilogueOpDefaultFtGelu)
LEFT_OUT(EpilogueOpDefaultRelu2)

template class MoeGemmRunner<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>;
template class MoeGemmRunner<__nv_bfloat16, __nv_fp8_e4m3, __nv_bfloat16>;

}  // namespace tensorrt_llm::kernels::cutlass_kernels
