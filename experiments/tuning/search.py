"""The search for the fastest tiles of one layer and batch: stage by stage, then whole forwards against the heuristic.

Knows nothing of GPUs: whoever calls it gives it the timer.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tritonmoe_bench.kernels.fast.tile_types import AnyTiles, FastTiles

from .space import FEW_GEMMS, GEMMS, Candidate, parts, whole

PRUNE = 1.2
"""A tile that is slower than the best by this factor at one skew is not timed at the next."""
BEST_OF_STAGE = 3
"""How many tiles of each stage and block height are combined."""
FINALISTS = 5
"""How many combinations are timed as whole forwards; where two paths are open, at least one of each."""
OF_A_HEIGHT = 2
"""At most this many finalists share a block height; summed stage times cannot separate closer ones."""
ROUNDS = 5
"""How often each finalist takes its turn. The drift of the GPU's clock is larger than the differences between them."""
MARGIN = 1.005
"""A winner is faster than the heuristic by at least this factor, in the median of the rounds."""


class Timer(Protocol):
    """Gives times in us, and None for what does not run here or computes a wrong result."""

    def stage(self, candidate: Candidate, skew: float) -> float | None: ...

    def forward(self, tiles: AnyTiles, skew: float, turn: int) -> float | None: ...


@dataclass(frozen=True)
class Choice:
    """What goes into the tuned table.

    tiles: the winner, None where the heuristic stays; gain: the heuristic's time over that of the fastest rival, as the
    median of the rounds, None if only one of them runs.
    """

    tiles: AnyTiles | None
    gain: float | None


def search(
    found: Sequence[Candidate], heuristic: AnyTiles, timer: Timer, skews: Sequence[float], rounds: int = ROUNDS
) -> Choice | None:
    """The fastest combination of the candidates, by the geometric mean over the skews; None if none is right."""
    times = stage_times(found, parts(heuristic), timer, skews)
    return final(heuristic, finalists(times, heuristic), timer, skews, rounds)


def stage_times(
    found: Sequence[Candidate], keep: Sequence[Candidate], timer: Timer, skews: Sequence[float]
) -> dict[Candidate, list[float]]:
    """Times in us, one per skew, of the candidates that are right and not slow at any; those of `keep` may be slow."""
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in found}
    for skew in skews:
        for candidate in list(times):
            us = timer.stage(candidate, skew)
            if us is None:
                del times[candidate]
            else:
                times[candidate].append(us)
        for candidate in _slow(times, keep):
            del times[candidate]
    return times


def _slow(times: dict[Candidate, list[float]], keep: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that were slow at the last skew. The best of each height stays, as stages are paired by height."""
    best: dict[str, float] = {}
    best_of_height: dict[tuple[str, int], tuple[float, Candidate]] = {}
    for candidate, us in times.items():
        best[candidate.stage] = min(us[-1], best.get(candidate.stage, math.inf))
        height = (candidate.stage, candidate.block_m)
        if height not in best_of_height or us[-1] < best_of_height[height][0]:
            best_of_height[height] = (us[-1], candidate)
    stay = {*keep, *(candidate for _, candidate in best_of_height.values())}
    return [
        candidate for candidate, us in times.items() if us[-1] > PRUNE * best[candidate.stage] and candidate not in stay
    ]


def finalists(times: dict[Candidate, list[float]], heuristic: AnyTiles) -> list[AnyTiles]:
    """The combinations whose two stages sum to the least: the best of each path, then the next best of all. In one grid
    where the heuristic's are."""
    one_grid = isinstance(heuristic, FastTiles) and heuristic.one_grid
    by_path = []
    for first, second in (GEMMS, FEW_GEMMS):
        ranked: list[tuple[float, AnyTiles]] = []
        for block_m in sorted({candidate.block_m for candidate in times if candidate.stage == first}):
            pairs = itertools.product(_best(times, first, block_m), _best(times, second, block_m))
            here = [
                (_mean([a + b for a, b in zip(times[gate_up], times[down])]), whole(gate_up, down, one_grid))
                for gate_up, down in pairs
                if whole(gate_up, down, one_grid) != heuristic
            ]
            ranked += sorted(here, key=lambda entry: entry[0])[:OF_A_HEIGHT]
        if ranked:
            by_path.append(sorted(ranked, key=lambda entry: entry[0]))
    # A path's stages do not tell what its other kernels cost, so no path is left out before whole forwards are timed.
    sure = [ranked[0] for ranked in by_path]
    rest = sorted((entry for ranked in by_path for entry in ranked[1:]), key=lambda entry: entry[0])
    return [tiles for _, tiles in [*sure, *rest][: max(FINALISTS, len(sure))]]


def final(
    heuristic: AnyTiles, rivals: Sequence[AnyTiles], timer: Timer, skews: Sequence[float], rounds: int
) -> Choice | None:
    """Whole forwards in turn, every other round backwards, so that a drift of the clock falls on all alike."""
    order = list(dict.fromkeys([heuristic, *rivals]))
    means: dict[AnyTiles, list[float]] = {tiles: [] for tiles in order}
    for turn in range(rounds):
        for tiles in order if turn % 2 == 0 else order[::-1]:
            if tiles in means:
                us = [timer.forward(tiles, skew, turn) for skew in skews]
                right = [value for value in us if value is not None]
                if len(right) == len(us):
                    means[tiles].append(_mean(right))
                else:
                    del means[tiles]
    if heuristic not in means:
        fastest = min(means, key=lambda tiles: statistics.median(means[tiles]), default=None)
        return None if fastest is None else Choice(fastest, None)
    own = means.pop(heuristic)
    ratios = {tiles: [mine / theirs for mine, theirs in zip(own, turns)] for tiles, turns in means.items()}
    if not ratios:
        return Choice(None, None)
    median: Callable[[AnyTiles], float] = lambda tiles: statistics.median(ratios[tiles])  # noqa: E731
    fastest = max(ratios, key=median)
    gain = median(fastest)
    return Choice(fastest if gain > MARGIN else None, gain)


def _best(times: dict[Candidate, list[float]], stage: str, block_m: int) -> list[Candidate]:
    here = [candidate for candidate in times if (candidate.stage, candidate.block_m) == (stage, block_m)]
    return sorted(here, key=lambda candidate: _mean(times[candidate]))[:BEST_OF_STAGE]


def _mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))
