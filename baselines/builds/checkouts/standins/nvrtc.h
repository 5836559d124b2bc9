// Stands in for the header of that name, and for its library, which FlashInfer's sources ask for and never call: its
// kernels for fp8 are compiled by nvcc.
#pragma once

#include <cstddef>

enum nvrtcResult { NVRTC_SUCCESS = 0, NVRTC_LEFT_OUT = 1 };
typedef void* nvrtcProgram;

inline const char* nvrtcGetErrorString(nvrtcResult) { return "NVRTC was left out"; }
inline nvrtcResult nvrtcCreateProgram(nvrtcProgram*, const char*, const char*, int, const char* const*,
                                      const char* const*) {
  return NVRTC_LEFT_OUT;
}
inline nvrtcResult nvrtcCompileProgram(nvrtcProgram, int, const char* const*) { return NVRTC_LEFT_OUT; }
inline nvrtcResult nvrtcDestroyProgram(nvrtcProgram*) { return NVRTC_LEFT_OUT; }
inline nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram, size_t*) { return NVRTC_LEFT_OUT; }
inline nvrtcResult nvrtcGetProgramLog(nvrtcProgram, char*) { return NVRTC_LEFT_OUT; }
inline nvrtcResult nvrtcGetCUBINSize(nvrtcProgram, size_t*) { return NVRTC_LEFT_OUT; }
inline nvrtcResult nvrtcGetCUBIN(nvrtcProgram, char*) { return NVRTC_LEFT_OUT; }
