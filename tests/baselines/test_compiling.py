"""Tiles compiled by threads ahead of their own tuner."""

import pytest

from tritonmoe_bench.baselines.parts import compiling


class Tuner:
    """As Triton's Autotuner: a launch goes to `run`, `warmup` compiles every configuration."""

    def __init__(self):
        self.launched, self.compiled = [], []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.run(*arguments, grid=grid, warmup=False, **options)

    def run(self, *arguments, grid, warmup, **options):
        self.launched.append((arguments, grid, options))

    def warmup(self, *arguments, grid, **options):
        self.compiled.append((arguments, grid, options))


def test_a_launch_compiles_and_launches_nothing():
    tuner, other = Tuner(), Tuner()
    with compiling.every_config([tuner]):
        tuner[(2,)]("x", BLOCK=16)
        other[(1,)]("x")
    assert tuner.compiled == [(("x",), (2,), {"BLOCK": 16})]
    assert (tuner.launched, len(other.launched)) == ([], 1)
    tuner[(2,)]("x", BLOCK=16)
    assert tuner.launched == tuner.compiled


def test_a_failure_inside_leaves_the_tuner_as_it_was():
    tuner = Tuner()
    with pytest.raises(ValueError, match="of the forward"), compiling.every_config([tuner]):
        raise ValueError("of the forward")
    tuner[(1,)]()
    assert len(tuner.launched) == 1


def test_threads_compile_what_is_warmed_up_inside():
    from triton.runtime import _async_compile

    with compiling.in_threads():
        assert _async_compile.active_mode.get() is not None
    assert _async_compile.active_mode.get() is None
