"""The one wait of a forward whose GEMMs are launched with problem sizes from the host's memory."""

from __future__ import annotations

import numpy as np
import torch


class HostEnds:
    """Where each expert's rows end, on the host. What is queued between `copy` and `wait` runs during the wait."""

    def __init__(self, num_experts: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._host = torch.empty(num_experts, dtype=torch.int64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def copy(self, ends: torch.Tensor) -> None:
        """Queues the copy of int64 [num_experts]."""
        self._host.copy_(ends, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> np.ndarray:
        """int64 [num_experts], valid until the next `copy`."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy()
