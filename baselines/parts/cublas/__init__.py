"""cuBLAS's grouped GEMM by ctypes, and its arguments for the experts of a layer."""
