"""What formats of four bits share: two values a byte, and the arrangement in which `fast` reads them fastest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .packed import Packed, check_divides

if TYPE_CHECKING:
    import torch

BLOCK = 128
"""Columns of prepared weights that lie together."""
ROWS = 8
"""Rows of prepared weights that lie together."""


@dataclass(frozen=True)
class FourBits(Packed):
    """values: uint8 [experts, rows, columns / 2], the even column in the low four bits; scales: [experts, rows,
    columns / group], a row's for each group of columns.

    Of `prepared` weights, eight rows are one, a block of 128 columns after the other: values: int32 [experts, rows / 8,
    columns], blocks of 8 rows and 16 words of eight columns; scales: [experts, rows / 8, 8 * columns / least], blocks
    of 8 rows and the scales of 128 columns. The last block is filled up with zeros, which the tensors leave out: their
    rows lie apart.
    """

    bits = 4
    group: ClassVar[int]
    """Columns that share a scale."""
    least: ClassVar[int]
    """Columns that have a scale of prepared weights: so few that a row has four bytes of them in a block, which is the
    least that is copied ahead of its use."""

    @property
    def is_prepared(self) -> bool:
        import torch

        return self.values.dtype == torch.int32

    @property
    def shape(self) -> tuple[int, int, int]:
        experts, rows, columns = self.values.shape
        return (experts, rows * ROWS, columns) if self.is_prepared else (experts, rows, 2 * columns)

    def prepared(self) -> FourBits:
        """The same weights as `fast` reads them fastest: what a program needs of eight rows at a time lies together in
        memory. To be done once, when a checkpoint is loaded; takes as much memory again while it runs. Weights whose
        rows are no multiple of 16, or that are prepared, stay as they are.
        """
        import torch

        _, rows, columns = self.shape
        if self.is_prepared or rows % (2 * ROWS):  # twice, as gate and up are to be whole both
            return self
        words = [_together(self.arranged(expert.view(torch.int32)), BLOCK // 8) for expert in self.values.unbind()]
        often = self.group // self.least
        scales = [_together(part.repeat_interleave(often, 1), BLOCK // self.least) for part in self.scales.unbind()]
        values = torch.stack(words)[:, :, :columns]
        return type(self)(values, torch.stack(scales)[:, :, : ROWS * columns // self.least])

    def checkpoint(self) -> FourBits:
        """The same weights in the layout of checkpoints: the inverse of `prepared`."""
        import torch

        if not self.is_prepared:
            return self
        words = _rows(self.values, self.shape[2] // 8, BLOCK // 8)
        scales = _rows(self.scales, self.shape[2] // self.least, BLOCK // self.least)[..., :: self.group // self.least]
        return type(self)(self.arranged(words, inverse=True).contiguous().view(torch.uint8), scales.contiguous())

    def codes(self) -> torch.Tensor:
        """uint8 [experts, rows, columns]: the four bits of each."""
        import torch

        values = self.checkpoint().values
        return torch.stack([values & 0xF, values >> 4], dim=-1).reshape(self.shape)

    @classmethod
    @abstractmethod
    def arranged(cls, words: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
        """int32 words of a checkpoint with their bits where a kernel needs the fewest instructions to part them."""

    @classmethod
    def check(cls, rows: int, columns: int) -> None:
        check_divides(cls.name, columns, cls.group, "columns")


def with_margin(part: torch.Tensor, width: int) -> torch.Tensor:
    """A part of prepared weights, [experts, rows / 8, ...], with what fills up its last block; width: of a block."""
    whole = -(-part.shape[2] // (ROWS * width)) * ROWS * width
    return part.as_strided((*part.shape[:2], whole), (part.shape[1] * whole, whole, 1))


def _together(part: torch.Tensor, width: int) -> torch.Tensor:
    """[rows / 8, ...] of an expert's part [rows, ...], in blocks of 8 rows and that width, filled up with zeros."""
    import torch

    whole = torch.nn.functional.pad(part, (0, -part.shape[1] % width))
    return whole.view(part.shape[0] // ROWS, ROWS, -1, width).transpose(1, 2).flatten(1)


def _rows(part: torch.Tensor, width: int, together: int) -> torch.Tensor:
    """[experts, rows, width] of a prepared part."""
    whole = with_margin(part, together).unflatten(2, (-1, ROWS, together))
    return whole.transpose(2, 3).flatten(1, 2).flatten(2)[:, :, :width]


def pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two codes of four bits a byte, the even column in the low half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
