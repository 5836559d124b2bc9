// Grouped GEMM of a Mixture-of-Experts layer on Hopper by CUTLASS 3's pointer-array kernels (TMA, warp-specialised).
//
// For every expert e: out[rows of e, n] = rows[rows of e, k] x weights[e, n, k]^T, float32 accumulation. The weights are
// CUTLASS's A operand, so that an expert's rows are the N of its problem: N may be as small as a tile of 16 where M may
// not be below 64. Problem sizes and pointers are made on the GPU from `ends`: the host never waits.
//
// One library holds one element type: compile with -DELEMENT=bfloat16_t or half_t (build.py does both).

#include <cuda_runtime.h>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/group_array_problem_shape.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/kernel_hardware_info.h"

#ifndef ELEMENT
#error "define ELEMENT: bfloat16_t or half_t"
#endif

namespace moe_cutlass {

using namespace cute;
using Element = cutlass::ELEMENT;
using Problem = Shape<int, int, int>;
using Weights = cutlass::layout::RowMajor;     // A: [n, k], k contiguous
using Rows = cutlass::layout::ColumnMajor;     // B: [k, rows], k contiguous
using Output = cutlass::layout::ColumnMajor;   // D: [n, rows], n contiguous, which is row-major [rows, n]
constexpr int kVector = 16 / sizeof(Element);  // elements of one TMA-aligned piece

enum Status { kOk = 0, kBadTile = -1, kBadArgument = -2, kNoWorkspace = -3, kCutlass = -4, kCuda = -5 };

using WeightStride = Stride<int64_t, _1, _0>;
using RowStride = Stride<int64_t, _1, _0>;
using OutputStride = Stride<_1, int64_t, _0>;

// What the kernel reads for each expert, in arrays over experts that lie behind each other in the workspace.
struct Groups {
  Problem* problems;
  Element const** weights;
  Element const** rows;
  Element** out;
  WeightStride* weight_strides;
  RowStride* row_strides;
  OutputStride* out_strides;
  size_t bytes;

  Groups(int experts, void* workspace) {
    size_t offset = 0;
    auto take = [&](auto*& pointer) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(static_cast<char*>(workspace) + offset);
      offset += (experts * sizeof(*pointer) + 127) / 128 * 128;
    };
    take(problems);
    take(weights);
    take(rows);
    take(out);
    take(weight_strides);
    take(row_strides);
    take(out_strides);
    bytes = offset;
  }
};

__global__ void describe(Groups groups, int const* ends, int experts, Element const* weights, Element const* rows,
                         Element* out, int n, int k) {
  int const expert = blockIdx.x * blockDim.x + threadIdx.x;
  if (expert >= experts) return;
  int const begin = expert == 0 ? 0 : ends[expert - 1];
  groups.problems[expert] = make_shape(n, ends[expert] - begin, k);
  groups.weights[expert] = weights + static_cast<int64_t>(expert) * n * k;
  groups.rows[expert] = rows + static_cast<int64_t>(begin) * k;
  groups.out[expert] = out + static_cast<int64_t>(begin) * n;
  groups.weight_strides[expert] = WeightStride{k, _1{}, _0{}};
  groups.row_strides[expert] = RowStride{k, _1{}, _0{}};
  groups.out_strides[expert] = OutputStride{_1{}, n, _0{}};
}

cutlass::KernelHardwareInfo const& hardware() {
  static cutlass::KernelHardwareInfo const info = [] {
    cutlass::KernelHardwareInfo found;
    cudaGetDevice(&found.device_id);
    found.sm_count = cutlass::KernelHardwareInfo::query_device_multiprocessor_count(found.device_id);
    return found;
  }();
  return info;
}

struct Pingpong {
  using Mainloop = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong;
  using Epilogue = cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong;
};

struct Cooperative {
  using Mainloop = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative;
  using Epilogue = cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative;
};

template <class Tile, class Cluster, class Schedule>
struct Grouped {
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Output*, kVector, Element, Output*, kVector,
      typename Schedule::Epilogue>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, Weights*, kVector, Element, Rows*, kVector, float,
      Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Schedule::Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<Problem>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static_assert(std::is_same_v<typename Kernel::InternalStrideA, WeightStride>);
  static_assert(std::is_same_v<typename Kernel::InternalStrideB, RowStride>);
  static_assert(std::is_same_v<typename Kernel::InternalStrideD, OutputStride>);

  static typename Gemm::Arguments arguments(Groups const& groups, int experts) {
    typename Gemm::Arguments made{
        cutlass::gemm::GemmUniversalMode::kGrouped,
        {experts, groups.problems, nullptr},
        {groups.weights, groups.weight_strides, groups.rows, groups.row_strides},
        {{}, nullptr, groups.out_strides, groups.out, groups.out_strides},
        hardware()};
    made.epilogue.thread.alpha = 1.0f;
    made.epilogue.thread.beta = 0.0f;
    // Blocks with the same weights and other rows run side by side, so that weights are read from DRAM once.
    made.scheduler.raster_order = Kernel::TileScheduler::RasterOrderOptions::AlongN;
    return made;
  }

  static size_t workspace(int experts) {
    Groups const groups(experts, nullptr);
    return groups.bytes + Gemm::get_workspace_size(arguments(groups, experts));
  }

  static int run(Groups const& groups, int experts, void* workspace, cudaStream_t stream) {
    Gemm gemm;
    auto const made = arguments(groups, experts);
    if (gemm.can_implement(made) != cutlass::Status::kSuccess) return kBadArgument;
    if (gemm.initialize(made, static_cast<char*>(workspace) + groups.bytes, stream) != cutlass::Status::kSuccess)
      return kCutlass;
    return gemm.run(stream) == cutlass::Status::kSuccess ? kOk : kCutlass;
  }
};

using One = Shape<_1, _1, _1>;

// The tiles, by index: n x rows x k of one thread block. `describe_tile` names them to Python.
template <class Visitor>
auto visit(int tile, Visitor&& visitor) {
  switch (tile) {
    case 0: return visitor(Grouped<Shape<_128, _16, _128>, One, Pingpong>{}, "128x16x128 pingpong");
    case 1: return visitor(Grouped<Shape<_128, _32, _128>, One, Pingpong>{}, "128x32x128 pingpong");
    case 2: return visitor(Grouped<Shape<_128, _64, _64>, One, Pingpong>{}, "128x64x64 pingpong");
    case 3: return visitor(Grouped<Shape<_128, _128, _64>, One, Pingpong>{}, "128x128x64 pingpong");
    case 4: return visitor(Grouped<Shape<_256, _128, _64>, Shape<_2, _1, _1>, Cooperative>{},
                           "256x128x64 cooperative, cluster 2x1");
    default: return decltype(visitor(Grouped<Shape<_128, _16, _128>, One, Pingpong>{}, "")){};
  }
}

constexpr int kTiles = 5;

}  // namespace moe_cutlass

using namespace moe_cutlass;

extern "C" {

int moe_cutlass_tiles() { return kTiles; }

// Words for tile 0 to moe_cutlass_tiles() - 1; null beyond.
char const* moe_cutlass_describe_tile(int tile) {
  if (tile < 0 || tile >= kTiles) return nullptr;
  return visit(tile, [](auto, char const* name) -> char const* { return name; });
}

// Bytes that a call needs on the GPU for that many experts, aligned to 256; 0 for a tile that there is none of.
size_t moe_cutlass_workspace(int tile, int experts) {
  if (tile < 0 || tile >= kTiles || experts < 1) return 0;
  return visit(tile, [&](auto gemm, char const*) -> size_t { return decltype(gemm)::workspace(experts); });
}

// weights [experts, n, k], rows [ends[experts - 1], k] sorted by expert, out [ends[experts - 1], n], all contiguous and
// 16-byte aligned with n and k multiples of 8; ends int32 [experts], on the GPU, where each expert's rows end.
// 0, or one of Status. Nothing is waited for.
int moe_cutlass_grouped_gemm(int tile, void const* weights, void const* rows, void* out, int const* ends, int experts,
                             int n, int k, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (tile < 0 || tile >= kTiles) return kBadTile;
  if (experts < 1 || n < 1 || k < 1 || n % kVector || k % kVector) return kBadArgument;
  return visit(tile, [&](auto gemm, char const*) -> int {
    if (workspace_bytes < decltype(gemm)::workspace(experts)) return kNoWorkspace;
    Groups const groups(experts, workspace);
    describe<<<(experts + 127) / 128, 128, 0, stream>>>(groups, ends, experts, static_cast<Element const*>(weights),
                                                        static_cast<Element const*>(rows), static_cast<Element*>(out),
                                                        n, k);
    if (cudaGetLastError() != cudaSuccess) return kCuda;
    return decltype(gemm)::run(groups, experts, workspace, stream);
  });
}

}  // extern "C"
