"""int4: symmetric four-bit integers with one 16-bit scale per group of columns, as GPTQ and Kimi-K2's checkpoints hold.

A weight is (code - 8) * scale, with codes 0 to 15. A group has 128 columns, in Kimi-K2's checkpoints 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .four_bits import FourBits, pairs

if TYPE_CHECKING:
    import torch

ZERO = 8
HALF_RANGE = 7.5
"""The largest weight of a group is this many scales: half way between the 7 steps above zero and the 8 below."""


@dataclass(frozen=True)
class Int4(FourBits):
    """values, and scales in float16 or bfloat16, as in `FourBits`."""

    name = "int4"
    group: ClassVar[int] = 128
    least: ClassVar[int] = 64

    @classmethod
    def pack(cls, weights: torch.Tensor) -> Int4:
        """As `Packed.pack`; the scales have the dtype of the weights, bfloat16 for those in float32."""
        import torch

        experts, rows, columns = weights.shape
        group = cls.group
        cls.check(rows, columns)
        scale_dtype = torch.bfloat16 if weights.dtype == torch.float32 else weights.dtype
        groups = weights.float().reshape(experts, rows, columns // group, group)
        scales = (groups.abs().amax(-1) / HALF_RANGE).clamp(min=torch.finfo(scale_dtype).tiny).to(scale_dtype)
        codes = (groups / scales.float()[..., None]).round().clamp(-ZERO, ZERO - 1) + ZERO
        codes = codes.to(torch.uint8).reshape(weights.shape)
        return cls(pairs(codes), scales)

    @classmethod
    def from_gptq(cls, qweight: torch.Tensor, scales: torch.Tensor) -> Int4:
        """Tensors of a symmetric GPTQ checkpoint without reordering: qweight int32 [experts, columns / 8, rows], eight
        columns a word, the first in the lowest bits; scales float16 or bfloat16 [experts, columns / group, rows].

        Raises ValueError for another group than this class has.
        """
        import torch

        found = 8 * qweight.shape[1] / scales.shape[1]
        if found != cls.group:
            raise ValueError(f"{cls.name} has a scale per {cls.group} columns, these tensors one per {found:g}")
        shifts = torch.arange(0, 32, 4, device=qweight.device, dtype=torch.int32)
        codes = (qweight[:, :, None, :] >> shifts[None, None, :, None]) & 0xF  # [experts, columns / 8, 8, rows]
        codes = codes.flatten(1, 2).transpose(1, 2).to(torch.uint8)  # [experts, rows, columns]
        return cls(pairs(codes).contiguous(), scales.transpose(1, 2).contiguous())

    def unpack(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        import torch

        scales = self.checkpoint().scales.float().repeat_interleave(self.group, -1)
        return ((self.codes().float() - ZERO) * scales).to(dtype or torch.float32)

    @classmethod
    def arranged(cls, words: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
        """As they are."""
        return words

    @classmethod
    def scale_bytes(cls, rows: int, columns: int) -> int:
        return 2 * rows * (columns // cls.group)


@dataclass(frozen=True)
class Int4Group32(Int4):
    """As `Int4` with a scale per 32 columns."""

    name = "int4_g32"
    group = 32
    least = 32
