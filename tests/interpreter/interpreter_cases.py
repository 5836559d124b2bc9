"""What the tests of the repaired interpreter share: numbers, and bit-for-bit comparison."""

import os

import pytest
import torch

INTERPRETED = pytest.mark.skipif(
    "TRITON_INTERPRET" not in os.environ, reason="about the interpreter, which is off where there is a GPU"
)
ROWS, COLUMNS = 16, 64
SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"), 3.3895e38, 1e-40, 0.00390625, 1.00390625]


def random_bf16(seed: int, special: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(ROWS, COLUMNS, generator=generator) * 4
    if special:
        flat = values.view(-1)
        for position, number in enumerate(SPECIAL):
            flat[seed % 7 + position * 11] = number
    return values.to(torch.bfloat16)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Same dtype and same bits, any NaN equal to any other."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.is_floating_point():
        finite = ~torch.isnan(expected)
        assert torch.equal(torch.signbit(actual[finite]), torch.signbit(expected[finite]))
