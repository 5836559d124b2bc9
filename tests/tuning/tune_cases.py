"""What the tests of `make tune` share: a few candidates, and a timer by a stand-in for the clock."""

from tritonmoe_bench.experiments.tuning.space import Candidate, parts, whole
from tritonmoe_bench.kernels.fast.tile_types import FastTile

SKEWS = (0.0, 1.2)
MODELS = {
    "mixtral": (8, 2, 4096, 14336), "qwen2_paper": (64, 4, 3584, 2560), "qwen3_30b_a3b": (128, 8, 2048, 768),
    "odd": (8, 2, 4097, 14337),
}  # fmt: skip


def tile(number):
    return FastTile(16 * 2**number, 64, 4, 2, 64, 2)


GATE_UP = [Candidate("gate_up", 64, tile(number)) for number in range(3)]
DOWN = [Candidate("down", 64, tile(number)) for number in range(3)]
FOUND = [*GATE_UP, *DOWN]
HEURISTIC = whole(GATE_UP[0], DOWN[0])
BETTER = whole(GATE_UP[1], DOWN[1])


class FakeTimer:
    """us of a stage by its candidate, of a forward the sum of both, each times what `change` says, None for what does
    not run; notes the calls."""

    def __init__(self, us, change=lambda what, skew, turn: 1.0):
        self.us, self.change = us, change
        self.stages, self.forwards = [], []

    def stage(self, candidate, skew):
        self.stages.append((candidate, skew))
        return self._changed(self.us[candidate], candidate, skew, 0)

    def forward(self, tiles, skew, turn):
        self.forwards.append((tiles, skew, turn))
        us = [self._changed(self.us[part], part, skew, turn) for part in parts(tiles)]
        return None if None in us else self._changed(sum(us), tiles, skew, turn)

    def _changed(self, us, what, skew, turn):
        factor = self.change(what, skew, turn)
        return None if factor is None else us * factor


def clock(**changed):
    """100 us for every candidate, but for those that are named, as gate_up1=80."""
    named = {
        f"{candidate.stage}{number}": candidate for group in (GATE_UP, DOWN) for number, candidate in enumerate(group)
    }
    return dict.fromkeys(FOUND, 100.0) | {named[name]: us for name, us in changed.items()}
