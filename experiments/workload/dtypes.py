"""The dtypes of a case in torch."""

from __future__ import annotations

import numpy as np
import torch

TORCH_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """To the nearest value of the dtype, as float32."""
    return torch.from_numpy(values.astype(np.float32)).to(TORCH_DTYPE[dtype]).float().numpy()
