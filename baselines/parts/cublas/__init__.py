"""What the baselines over one library's GEMMs share: rows sorted by expert, counts on the host, cuBLAS by ctypes."""
