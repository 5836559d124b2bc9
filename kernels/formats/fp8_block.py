"""fp8_block: e4m3 values with one float32 scale per block of 128 x 128, as DeepSeek-V3 and Qwen3-FP8 are published.

A checkpoint calls the scale `weight_scale_inv`, and yet a weight is its value times it. Gate and up rows share no
block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .packed import Packed, check_divides

if TYPE_CHECKING:
    import torch

BLOCK = 128
MOST = 448.0
"""The largest number of e4m3."""


@dataclass(frozen=True)
class Fp8Block(Packed):
    """values: float8_e4m3fn [experts, rows, columns]; scales: float32 [experts, rows / 128, columns / 128]."""

    name = "fp8_block"
    bits = 8

    @classmethod
    def pack(cls, weights: torch.Tensor) -> Fp8Block:
        import torch

        experts, rows, columns = weights.shape
        cls.check(rows, columns)
        blocks = weights.float().reshape(experts, rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scales = blocks.abs().amax((2, 4)).clamp(min=torch.finfo(torch.float32).tiny) / MOST
        values = (blocks / scales[:, :, None, :, None]).clamp(-MOST, MOST)
        return cls(values.reshape(weights.shape).to(torch.float8_e4m3fn), scales)

    @classmethod
    def from_checkpoint(cls, weight: torch.Tensor, weight_scale_inv: torch.Tensor) -> Fp8Block:
        """Tensors as DeepSeek-V3 and Qwen3-FP8 publish them: weight float8_e4m3fn [experts, rows, columns],
        weight_scale_inv float32 [experts, rows / 128, columns / 128]. Raises ValueError or TypeError if they do not
        fit.
        """
        import torch

        experts, rows, columns = weight.shape
        cls.check(rows, columns)
        if weight.dtype != torch.float8_e4m3fn:
            raise TypeError(f"weight must be torch.float8_e4m3fn, got {weight.dtype}")
        wanted = (experts, rows // BLOCK, columns // BLOCK)
        if tuple(weight_scale_inv.shape) != wanted:
            raise ValueError(f"weight_scale_inv must have shape {list(wanted)}, got {list(weight_scale_inv.shape)}")
        return cls(weight.contiguous(), weight_scale_inv.float().contiguous())

    def unpack(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        import torch

        scales = self.scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
        return (self.values.float() * scales).to(dtype or torch.float32)

    def raw(self) -> torch.Tensor:
        import torch

        return self.values.view(torch.uint8)

    @classmethod
    def from_raw(cls, values: torch.Tensor, scales: torch.Tensor) -> Fp8Block:
        import torch

        return cls(values.view(torch.float8_e4m3fn), scales)

    @classmethod
    def check(cls, rows: int, columns: int) -> None:
        check_divides(cls.name, rows, BLOCK, "rows")
        check_divides(cls.name, columns, BLOCK, "columns")

    @classmethod
    def scale_bytes(cls, rows: int, columns: int) -> int:
        return 4 * (rows // BLOCK) * (columns // BLOCK)

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, rows, columns = self.values.shape
        return experts, rows, columns
