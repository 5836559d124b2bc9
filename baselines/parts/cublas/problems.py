"""The arguments of cuBLAS's grouped GEMM for the expert GEMMs of a MoE layer: one group per active expert.

Row-major ``out[rows, n] = rows[rows, k] x weights[n, k]^T`` is, read column-major, ``out^T [n, rows] = A^T B`` with A
the weights, [k, n], and B the rows, [k, rows]: cuBLAS's m is n, its n the rows of the expert.
"""

from __future__ import annotations

import numpy as np
import torch

from .library import COMPUTE_32F, CUDA_DTYPE, OP_N, OP_T, Handle

MATRICES = 3
"""A (weights), B (rows) and C (out) of each expert."""


class Groups:
    """The active experts of a forward, of `ends` int64 [num_experts], where each expert's rows end.

    active: int64, the experts that have rows; starts: int64, where their rows start; counts: int32, how many they are.
    """

    def __init__(self, ends: np.ndarray) -> None:
        counts = np.diff(ends, prepend=0)
        self.active = np.flatnonzero(counts)
        self.counts = counts[self.active].astype(np.int32)
        self.starts = ends[self.active] - self.counts

    def __len__(self) -> int:
        return len(self.active)


class ExpertGemm:
    """out [N, n] = rows [N, k] x weights [num_experts, n, k]^T for rows sorted by expert, N over all experts."""

    def __init__(self, weights: torch.Tensor) -> None:
        if not weights.is_contiguous():
            raise ValueError("the weights must be contiguous")
        num_experts, self.n, self.k = weights.shape
        self._kept = weights
        size = weights.element_size()
        self._dtype = CUDA_DTYPE[weights.dtype]
        self._row_bytes, self._out_bytes = self.k * size, self.n * size
        self._matrices = weights.data_ptr() + np.arange(num_experts) * (self.n * self.k * size)
        # The same for every expert, and read on the host alone: made once, for as many experts as there may be.
        self._m, self._k, self._op_t, self._op_n, self._one = (
            np.full(num_experts, value, np.int32) for value in (self.n, self.k, OP_T, OP_N, 1)
        )
        self._alpha, self._beta = np.ones(num_experts, np.float32), np.zeros(num_experts, np.float32)

    def pointers(self, groups: Groups, rows: torch.Tensor, out: torch.Tensor) -> np.ndarray:
        """int64 [MATRICES, active experts]: the address of each matrix."""
        found = np.empty((MATRICES, len(groups)), np.int64)
        found[0] = self._matrices[groups.active]
        found[1] = groups.starts * self._row_bytes + rows.data_ptr()
        found[2] = groups.starts * self._out_bytes + out.data_ptr()
        return found

    def launch(self, handle: Handle, groups: Groups, pointers: int) -> None:
        """pointers: where the array of `pointers` lies in GPU memory."""
        row = 8 * len(groups)
        m, k = self._m.ctypes.data, self._k.ctypes.data
        handle.grouped_gemm(
            self._op_t.ctypes.data, self._op_n.ctypes.data, m, groups.counts.ctypes.data, k, self._alpha.ctypes.data,
            pointers, self._dtype, k,
            pointers + row, self._dtype, k,
            self._beta.ctypes.data,
            pointers + 2 * row, self._dtype, m,
            len(groups), self._one.ctypes.data, COMPUTE_32F,
        )  # fmt: skip
