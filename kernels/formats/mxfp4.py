"""mxfp4: e2m1 values with one e8m0 scale per 32 columns, as gpt-oss is published (OCP Microscaling Formats 1.0).

A value is sign, two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. A scale is a
power of two, 2^(byte - 127).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .four_bits import FourBits, pairs

if TYPE_CHECKING:
    import torch

GROUP = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BIAS = 127
LARGEST_EXPONENT = 2
"""Of e2m1: its largest number, 6, lies in [4, 8)."""


@dataclass(frozen=True)
class Mxfp4(FourBits):
    """values, and scales in uint8, as in `FourBits`."""

    name = "mxfp4"
    group: ClassVar[int] = GROUP
    least: ClassVar[int] = GROUP

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
        return cls(pairs(codes.reshape(weights.shape)), (exponent + BIAS).to(torch.uint8))

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

        table = torch.tensor([*MAGNITUDES, *(-number for number in MAGNITUDES)], device=self.device)
        scales = self.checkpoint().scales
        numbers = table[self.codes().long()].reshape(*scales.shape, GROUP)
        return torch.ldexp(numbers, scales.int()[..., None] - BIAS).reshape(self.shape).to(dtype or torch.float32)

    @classmethod
    def arranged(cls, words: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
        return _moved(words, [(after, before) for before, after in _places()] if inverse else _places())

    @classmethod
    def scale_bytes(cls, rows: int, columns: int) -> int:
        return rows * (columns // GROUP)


PLACES = ((15, 6, 7, 8), (18, 9, 10, 11), (21, 12, 13, 14), (3, 4, 0, 1))
"""Where a prepared word has the sign and the magnitude, from its lowest bit on, of columns 0 to 3; 16 places further on
(of 32, in a ring) it has those of columns 4 to 7. Columns 1 and 2 lie as column 0 does, turned by 3 and 6 places."""


def _places() -> list[tuple[int, int]]:
    """(bit of a word of a checkpoint, bit of a prepared word) of each."""
    return [
        (4 * column + bit, (PLACES[column % 4][(bit + 1) % 4] + 16 * (column // 4)) % 32)
        for column in range(8)
        for bit in range(4)
    ]


def _moved(words: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """Words with each bit moved from one place to another; the places are in (from, to)."""
    moved = words ^ words
    for distance in sorted({after - before for before, after in places}):
        mask = sum(1 << before for before, after in places if after - before == distance)
        part = words & (mask - 2**32 if mask >= 2**31 else mask)
        # A shift to the right keeps the sign: what it brings in from above is cut off.
        moved |= part << distance if distance >= 0 else (part >> -distance) & (2 ** (32 + distance) - 1)
    return moved


def _nearest(magnitudes: torch.Tensor) -> torch.Tensor:
    """uint8 codes of the nearest magnitudes; of two equally near, the one with an even code."""
    import torch

    table = torch.tensor(MAGNITUDES, device=magnitudes.device)
    middles = (table[1:] + table[:-1]) / 2
    up = torch.bucketize(magnitudes, middles, right=True)  # a middle goes up ...
    down = torch.bucketize(magnitudes, middles, right=False)  # ... or down
    return torch.where(up % 2 == 0, up, down).to(torch.uint8)
