// FlashInfer's cutlass_fused_moe (csrc/fused_moe/cutlass_backend in its package) behind a C interface, without tvm-ffi:
// a SwiGLU layer in bf16, with weights in bf16 or in e4m3 with a float32 scale per 128 x 128 of them.
//
// It does what FlashInfer's own binding does around `runMoe`. A layer belongs to one shape: FlashInfer's runner keeps
// sizes from call to call.

#include "cutlass_fused_moe_kernels.cuh"
#include "cutlass_kernel_selector.h"
#include "moe_kernels.h"
#include "tensorrt_llm/deep_gemm/compiler.cuh"

#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace common = tensorrt_llm::common;
namespace extensions = tensorrt_llm::cutlass_extensions;
namespace moe = tensorrt_llm::kernels::cutlass_kernels;
using Config = extensions::CutlassGemmConfig;

namespace {

enum Status { kOk = 0, kFailed = -1 };

struct Layer {
  std::unique_ptr<moe::CutlassMoeFCRunnerInterface> runner;
  bool fp8_block;
  std::vector<Config> tactics[2];
  std::string words;
};

thread_local std::string error;

template <typename Result, typename Function>
Result guarded(Result failed, Function function) {
  try {
    return function();
  } catch (const std::exception& thrown) {
    error = thrown.what();
  }
  return failed;
}

std::string ampere_tile(extensions::CutlassTileConfig tile) {
  using Tile = extensions::CutlassTileConfig;
  switch (tile) {
    case Tile::CtaShape32x128x64_WarpShape32x32x64: return "32x128x64";
    case Tile::CtaShape64x128x64_WarpShape32x64x64: return "64x128x64";
    case Tile::CtaShape128x128x64_WarpShape64x32x64: return "128x128x64";
    default: return std::to_string(static_cast<int>(tile));
  }
}

std::string in_words(const Config& config) {
  if (!config.is_tma_warp_specialized) {
    return "Ampere's " + ampere_tile(config.tile_config_sm80) + ", " + std::to_string(config.stages) + " stages";
  }
  const bool fused = config.epilogue_fusion_type == Config::EpilogueFusionType::FINALIZE;
  return config.getTileConfigAsName() + " bytes, cluster " + extensions::get_cluster_shape_name(config.cluster_shape) +
         (config.swap_ab ? ", swapped" : "") + (fused ? ", fused sum" : "");
}

size_t runner_bytes(Layer& layer, int tokens, int hidden, int ffn, int experts, int top_k) {
  return layer.runner->getWorkspaceSize(tokens, hidden, ffn, experts, top_k, moe::ActivationType::Swiglu, {},
                                        /*use_lora=*/false, layer.fp8_block, /*use_mxfp8_act_scaling=*/false,
                                        /*min_latency_mode=*/false, /*use_awq=*/false);
}

}  // namespace

// What the last call that failed on this thread said.
extern "C" const char* moe_flashinfer_error() { return error.c_str(); }

// fp8_block: 1 for weights in e4m3; fused_sum: 1 to have tactics of the second GEMM that add to the output themselves;
// headers: the folder that holds deep_gemm/, from which the kernels for e4m3 are compiled. Null if it fails.
extern "C" void* moe_flashinfer_create(int fp8_block, int fused_sum, const char* headers) {
  return guarded<void*>(nullptr, [&]() -> void* {
    deep_gemm::jit::Compiler::setIncludeDirs({headers});
    auto layer = std::make_unique<Layer>();
    layer->fp8_block = fp8_block != 0;
    if (layer->fp8_block) {
      layer->runner = std::make_unique<moe::CutlassMoeFCRunner<__nv_bfloat16, __nv_fp8_e4m3>>();
      // FlashInfer has no choice for this format; it sets this one, which nothing reads.
      const Config any(extensions::CutlassTileConfigSM90::CtaShape128x16x128B, extensions::MainloopScheduleType::AUTO,
                       extensions::EpilogueScheduleType::AUTO, extensions::ClusterShape::ClusterShape_1x1x1);
      layer->tactics[0] = layer->tactics[1] = {any};
      return layer.release();
    }
    layer->runner = std::make_unique<moe::CutlassMoeFCRunner<__nv_bfloat16, __nv_bfloat16>>();
    layer->runner->use_fused_finalize_ = fused_sum != 0;
    for (int gemm : {0, 1}) {
      for (const Config& config : layer->runner->getTactics(gemm ? moe::MoeGemmId::GEMM_2 : moe::MoeGemmId::GEMM_1)) {
        if (layer->runner->queryOccupancyForConfig(config) > 0) layer->tactics[gemm].push_back(config);
      }
    }
    return layer.release();
  });
}

extern "C" void moe_flashinfer_destroy(void* layer) { delete static_cast<Layer*>(layer); }

// gemm: 0 for gate and up, 1 for down.
extern "C" int moe_flashinfer_tactics(void* layer, int gemm) {
  return static_cast<int>(static_cast<Layer*>(layer)->tactics[gemm].size());
}

extern "C" const char* moe_flashinfer_describe(void* handle, int gemm, int tactic) {
  auto& layer = *static_cast<Layer*>(handle);
  layer.words = in_words(layer.tactics[gemm].at(tactic));
  return layer.words.c_str();
}

// Bytes of scratch memory, or kFailed.
extern "C" long long moe_flashinfer_workspace(void* handle, int tokens, int hidden, int ffn, int experts, int top_k) {
  return guarded<long long>(kFailed, [&]() -> long long {
    const size_t sizes[] = {runner_bytes(*static_cast<Layer*>(handle), tokens, hidden, ffn, experts, top_k),
                            sizeof(int) * tokens * top_k};
    return static_cast<long long>(common::calculateTotalWorkspaceSize(sizes, 2));
  });
}

// x, out: bf16 [tokens, hidden]; chosen: int32, scores: float32, both [tokens, top_k]; up_gate: [experts, 2 * ffn,
// hidden], up rows then gate rows; down: [experts, hidden, ffn]; scales: as in the head, or null; workspace: aligned to
// 128 bytes.
extern "C" int moe_flashinfer_run(void* handle, const void* x, const void* chosen, const void* scores,
                                  const void* up_gate, const void* up_gate_scales, const void* down,
                                  const void* down_scales, void* out, void* workspace, int tokens, int hidden, int ffn,
                                  int experts, int top_k, int gate_up_tactic, int down_tactic, void* stream) {
  return guarded<int>(kFailed, [&] {
    auto& layer = *static_cast<Layer*>(handle);
    auto* scratch = static_cast<int8_t*>(workspace);
    auto* rows = common::nextWorkspacePtr(scratch, runner_bytes(layer, tokens, hidden, ffn, experts, top_k));
    layer.runner->setTactic(layer.tactics[0].at(gate_up_tactic), layer.tactics[1].at(down_tactic));
    auto quantised = moe::QuantParams{};
    if (layer.fp8_block) {
      quantised = moe::QuantParams::FP8BlockScaling(static_cast<const float*>(up_gate_scales),
                                                    static_cast<const float*>(down_scales));
    }
    tensorrt_llm::kernels::LoraParams no_lora{};
    moe::MoeMinLatencyParams no_min_latency{};
    layer.runner->runMoe(x, /*input_sf=*/nullptr, /*swizzled_input_sf=*/true, static_cast<const int*>(chosen),
                         static_cast<const float*>(scores), up_gate, /*fc1_expert_biases=*/nullptr,
                         moe::ActivationParams(moe::ActivationType::Swiglu), down, /*fc2_expert_biases=*/nullptr,
                         quantised, tokens, hidden, /*unpadded_hidden_size=*/hidden, ffn, experts, top_k,
                         reinterpret_cast<char*>(scratch), out, reinterpret_cast<int*>(rows), {},
                         /*enable_alltoall=*/false, /*use_lora=*/false, no_lora, layer.fp8_block,
                         /*use_mxfp8_act_scaling=*/false, /*min_latency_mode=*/false, no_min_latency,
                         /*enable_pdl=*/true, static_cast<cudaStream_t>(stream));
    return static_cast<int>(kOk);
  });
}
