"""In the interpreter every kernel test runs with bounds checked: an access outside of a tensor fails it unasked."""

import os

import pytest
import torch
import triton
import triton.language as tl

from tritonmoe_bench.experiments.accesses import OutOfBoundsError

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="accesses are checked in the interpreter")


@triton.jit
def _shifted_copy(source, out, COUNT: tl.constexpr, SHIFT: tl.constexpr):
    lanes = tl.arange(0, COUNT)
    tl.store(out + lanes, tl.load(source + lanes + SHIFT))


def test_an_access_out_of_bounds_fails_a_test_that_does_not_ask_for_it():
    source, out = torch.zeros(64), torch.zeros(32)
    _shifted_copy[(1,)](source[:32], out, 32, 0)
    with pytest.raises(OutOfBoundsError, match="read of source at element 32"):
        _shifted_copy[(1,)](source[:32], out, 32, 1)
    with pytest.raises(OutOfBoundsError, match="write of out at element 31"):
        _shifted_copy[(1,)](source, out[:16], 32, 0)
