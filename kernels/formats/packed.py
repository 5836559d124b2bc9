"""What every weight format offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Packed(ABC):
    """Matrices [experts, rows, columns] in a packed format, the sum of a product running over the columns.

    values: the packed numbers; scales: what groups of them are multiplied by. A format says the layout of both.
    """

    values: torch.Tensor
    scales: torch.Tensor

    name: ClassVar[str]
    bits: ClassVar[int]
    """Bits of one value, scales left out."""

    @classmethod
    @abstractmethod
    def pack(cls, weights: torch.Tensor) -> Packed:
        """The nearest packed weights. weights: floating point [experts, rows, columns].

        Raises ValueError for a shape that the format cannot hold.
        """

    @abstractmethod
    def unpack(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[experts, rows, columns]; in float32, exactly, unless another dtype is given."""

    @classmethod
    @abstractmethod
    def scale_bytes(cls, rows: int, columns: int) -> int:
        """Bytes of the scales of one matrix."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(experts, rows, columns) of the matrices, unpacked."""

    @classmethod
    def matrix_bytes(cls, rows: int, columns: int) -> int:
        """Bytes of one matrix, values and scales."""
        return rows * columns * cls.bits // 8 + cls.scale_bytes(rows, columns)

    @classmethod
    @abstractmethod
    def check(cls, rows: int, columns: int) -> None:
        """Raises ValueError, naming what is allowed, for a matrix that the format cannot hold."""

    def raw(self) -> torch.Tensor:
        """The values as uint8, in the same memory."""
        return self.values

    @classmethod
    def from_raw(cls, values: torch.Tensor, scales: torch.Tensor) -> Packed:
        """Of what `raw` gives."""
        return cls(values, scales)

    def prepared(self) -> Packed:
        """The same weights as kernels read them fastest; to be done once, when a checkpoint is loaded."""
        return self

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __getitem__(self, expert: int) -> Packed:
        """One expert's matrix, [1, rows, columns], sharing the memory."""
        return type(self)(*(getattr(self, field.name)[expert : expert + 1] for field in fields(self)))


def stack(parts: list[Packed]) -> Packed:
    """Several experts' matrices as one."""
    import torch

    kind = type(parts[0])
    return kind(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(kind)))


def check_divides(name: str, size: int, by: int, where: str) -> None:
    """Raises ValueError if a format cannot hold a dimension of this size."""
    if size % by:
        raise ValueError(
            f"{name} takes {where} in whole groups of {by}: got {size}; use another format or pad with zeros"
        )
