"""mxfp4: e2m1 values with one e8m0 scale per 32 columns, as gpt-oss is published (OCP Microscaling Formats 1.0).

A value is sign, two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. A scale is a
power of two, 2^(byte - 127).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .packed import Packed, check_divides

if TYPE_CHECKING:
    import torch

GROUP = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127
LARGEST_EXPONENT = 2
"""Of e2m1: its largest number, 6, lies in [4, 8)."""


@dataclass(frozen=True)
class Mxfp4(Packed):
    """values: uint8 [experts, rows, columns / 2], the even column in the low four bits; scales: uint8 [experts, rows,
    columns / 32]."""

    name = "mxfp4"
    bits = 4

    @classmethod
    def pack(cls, weights: torch.Tensor) -> Mxfp4:
        import torch

        experts, rows, columns = weights.shape
        cls.check(rows, columns)
        groups = weights.float().reshape(experts, rows, columns // GROUP, GROUP)
        most = groups.abs().amax(-1)
        exponent = torch.frexp(most).exponent - 1 - LARGEST_EXPONENT  # frexp: mantissa in [0.5, 1)
        exponent = torch.where(most > 0, exponent, 0).clamp(-BIAS, BIAS)
        scaled = torch.ldexp(groups, -exponent[..., None])
        codes = _nearest(scaled.abs()) | (torch.signbit(scaled).to(torch.uint8) << 3)
        return cls(_pairs(codes.reshape(weights.shape)), (exponent + BIAS).to(torch.uint8))

    @classmethod
    def from_checkpoint(cls, blocks: torch.Tensor, scales: torch.Tensor, *, interleaved: bool = False) -> Mxfp4:
        """Tensors as gpt-oss publishes them: blocks uint8 [experts, rows, columns / 32, 16], scales uint8 [experts,
        rows, columns / 32]. interleaved: rows are gate and up in turns, and come out gate rows first."""
        import torch

        experts, rows, groups, _ = blocks.shape
        if interleaved:
            blocks, scales = (torch.cat([part[:, 0::2], part[:, 1::2]], dim=1) for part in (blocks, scales))
        return cls(blocks.reshape(experts, rows, groups * GROUP // 2).contiguous(), scales.contiguous())

    def unpack(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        import torch

        low, high = self.values & 0xF, self.values >> 4
        codes = torch.stack([low, high], dim=-1).reshape(self.shape).long()
        table = torch.tensor([*MAGNITUDES, *(-number for number in MAGNITUDES)], device=self.device)
        numbers = table[codes].reshape(*self.scales.shape, GROUP)
        return torch.ldexp(numbers, self.scales.int()[..., None] - BIAS).reshape(self.shape).to(dtype or torch.float32)

    @classmethod
    def check(cls, rows: int, columns: int) -> None:
        check_divides(cls.name, columns, GROUP, "columns")

    @classmethod
    def scale_bytes(cls, rows: int, columns: int) -> int:
        return rows * (columns // GROUP)

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, rows, columns = self.values.shape
        return experts, rows, 2 * columns


def _nearest(magnitudes: torch.Tensor) -> torch.Tensor:
    """uint8 codes of the nearest magnitudes; of two equally near, the one with an even code."""
    import torch

    table = torch.tensor(MAGNITUDES, device=magnitudes.device)
    middles = (table[1:] + table[:-1]) / 2
    up = torch.bucketize(magnitudes, middles, right=True)  # a middle goes up ...
    down = torch.bucketize(magnitudes, middles, right=False)  # ... or down
    return torch.where(up % 2 == 0, up, down).to(torch.uint8)


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two codes of four bits a byte, the even column in the low half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
