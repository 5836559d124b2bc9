"""When PyTorch's GEMMs may be launched: cuBLAS makes a handle when a thread first calls it, which a capture forbids."""

from __future__ import annotations

import threading

import torch

_local = threading.local()


def may_call(device: torch.device) -> bool:
    """Whether a GEMM may be launched on the device now; the caller then does so, if True.

    False in the capture of a CUDA graph, unless this thread has been told True before, outside of a capture.
    """
    if device.type == "cpu":
        return True
    met = vars(_local).setdefault("devices", set())
    if device not in met:
        if torch.cuda.is_current_stream_capturing():
            return False
        met.add(device)
    return True
