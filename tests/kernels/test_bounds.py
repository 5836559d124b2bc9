"""In the interpreter every kernel test runs with bounds checked: an access outside of a tensor fails it unasked."""

import os
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from fast_cases import SMALL_FEW, SMALL_JOINED, make_tiles
from moe_cases import random

from tritonmoe_bench.experiments.interpreter import accesses
from tritonmoe_bench.experiments.interpreter.accesses import Launch, OutOfBoundsError
from tritonmoe_bench.experiments.interpreter.counting import count_bytes
from tritonmoe_bench.experiments.traffic.launches import LAUNCHES
from tritonmoe_bench.kernels import Gating, fast_moe, paper_moe
from tritonmoe_bench.kernels.fast.tile_types import FewTile, FewTiles
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.formats.int4 import Int4Group32

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


def layer():
    """Three experts, all of them chosen, and no dimension that a tile divides."""
    shapes = (9, 40), (3, 40), (3, 2 * 24, 40), (3, 40, 24)
    return *(random(*shape, dtype="fp16", device="cpu", seed=seed) for seed, shape in enumerate(shapes)), 2


def few_tokens(tiles):
    x, *weights = layer()
    gating = Gating("sigmoid", correction_bias=True)
    return fast_moe(x[:3], *weights, gating, correction_bias=torch.zeros(3), tiles=tiles)


def one_token_with_every_expert(tiles):
    """So that all counters of both GEMMs in one grid are used."""
    x, router, gate_up, down, _ = layer()
    return fast_moe(x[:1], router, gate_up, down, 3, tiles=tiles)


def over_fp8_blocks():
    x, router, gate_up, down = (
        random(*shape, dtype="fp16", device="cpu", seed=seed)
        for seed, shape in enumerate([(9, 256), (3, 256), (3, 2 * 128, 256), (3, 256, 128)])
    )
    return fast_moe(x, router, Fp8Block.pack(gate_up), Fp8Block.pack(down), 2, activations="a8")


def over_four_bits(tiles):
    x, router, gate_up, down = (
        random(*shape, dtype="fp16", device="cpu", seed=seed)
        for seed, shape in enumerate([(2, 160), (3, 160), (3, 2 * 96, 160), (3, 160, 96)])
    )
    return fast_moe(x, router, *(Int4Group32.pack(part).prepared() for part in (gate_up, down)), 2, tiles=tiles)


FORWARDS = {
    "paper_fused_graph": lambda: paper_moe(*layer(), fused=True, schedule="gpu"),
    "paper_unfused": lambda: paper_moe(*layer(), fused=False, schedule="host"),
    "fast": lambda: fast_moe(*layer(), tiles=make_tiles(16)),
    "fast_one_grid": lambda: one_token_with_every_expert(replace(make_tiles(16), one_grid=True)),
    "fast_bulk": lambda: fast_moe(*layer(), tiles=make_tiles(64, swap=True, bulk=True)),
    "fast_few": lambda: few_tokens(SMALL_FEW),
    "fast_joined": lambda: one_token_with_every_expert(SMALL_JOINED),
    "fast_few_four_bits": lambda: over_four_bits(FewTiles(FewTile(16, 128, 4), FewTile(16, 256, 4))),
}
"""Every kernel of both families over weights in 16 bits, between them, and of the output-centric path in four."""


@pytest.mark.parametrize("name", FORWARDS)
def test_the_bounds_of_every_argument_of_every_kernel_are_watched(name, monkeypatch):
    """With its last element taken for the first one outside, each argument that a kernel touches fails the launch."""
    with count_bytes() as counter:
        FORWARDS[name]()
    touched = {
        (launch.kernel, argument)
        for launch in counter.launches
        for argument, seen in launch.arguments.items()
        if seen.read_bytes or seen.write_bytes
    }
    assert len(touched) > 2 * len({kernel for kernel, _ in touched})
    for kernel, argument in sorted(touched):

        def shortened(launched, extents, kernel=kernel, argument=argument):
            if launched == kernel and argument in extents:  # a launch may leave an operand out
                extents[argument] = extents[argument]._replace(end=extents[argument].end - 2)
            return Launch(launched, extents)

        with monkeypatch.context() as patch:
            patch.setattr(accesses, "Launch", shortened)
            with pytest.raises(OutOfBoundsError, match=rf"{kernel}: .* of {argument} at element"):
                FORWARDS[name]()


def test_these_forwards_launch_every_kernel_of_both_families():
    with count_bytes() as counter:
        for forward in (*FORWARDS.values(), over_fp8_blocks, lambda: over_four_bits(None)):
            forward()
    known = {launch.kernel for sequences in LAUNCHES.values() for sequence in sequences for launch in sequence}
    assert {launch.kernel for launch in counter.launches} == known
